"""From data/processed to outputs/<experiment>: what `terratorch fit` loads by class_path."""
