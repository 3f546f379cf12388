"""Sentinel-2 from STAC catalogues, composited."""
