"""Chips, from files to batches."""
