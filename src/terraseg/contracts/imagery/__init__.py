"""What is known about a scene beside its pixels: its item, processing and values; and the scene on a finer grid."""
