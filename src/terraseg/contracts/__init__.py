"""The files that rooms hand to each other, one module for each kind."""
