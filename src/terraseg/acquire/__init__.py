"""From an area of interest to data/raw and data/osm_buildings: catalogues, composites, footprints."""
