"""From a scene and a bundle to results/predictions: windows, blending, COG, polygons, STAC."""
