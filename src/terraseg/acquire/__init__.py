"""From an area of interest to scenes in data/raw and footprints in data/osm_buildings."""
