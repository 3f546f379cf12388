"""Backbones that TerraTorch doesn't have: Galileo, SatMAE and Scale-MAE. Importing a module registers its models."""
