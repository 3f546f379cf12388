"""The files that rooms pass to each other, one module per kind."""
