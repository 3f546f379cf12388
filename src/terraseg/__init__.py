"""terraseg: from an area of interest to a tested map, made from free satellite imagery with few labels."""

__version__ = "0.2.0"
