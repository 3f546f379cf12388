"""Chips from disk to batches."""
