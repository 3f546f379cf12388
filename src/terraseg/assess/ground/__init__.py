"""What a prediction is compared with."""
