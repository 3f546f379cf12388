"""Runtimes: running a bundle's model on PyTorch, ONNX Runtime or OpenVINO, and choosing between them."""
