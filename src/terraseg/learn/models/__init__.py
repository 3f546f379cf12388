"""Models: backbones, necks and the graph baseline; building a model and loading its weights."""
