"""Losses, scores, calibration and the bundle of a training."""
