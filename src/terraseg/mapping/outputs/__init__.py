"""The files of a product."""
