"""The graph baseline: superpixels as nodes, their adjacency as edges, GraphSAGE between them."""
