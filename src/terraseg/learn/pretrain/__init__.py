"""Pretraining on scenes without labels."""
