"""From data/raw and data/osm_buildings to data/processed: labels, chips, splits, statistics, audit."""
