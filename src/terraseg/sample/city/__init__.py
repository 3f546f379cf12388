"""A synthetic city with exactly known buildings."""
