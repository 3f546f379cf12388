"""What runs a model, and the choice between them."""
