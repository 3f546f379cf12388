"""The graph baseline: GraphSAGE on superpixels as nodes and their adjacency as edges."""
