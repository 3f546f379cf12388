"""Ground truth, and the predictions to compare with it."""
