"""Experiments x label fractions x seeds as one resumable matrix, and the tables of its results."""
