"""Footprints from OpenStreetMap, GeoParquet and vector files."""
