"""Building models and loading their weights."""
