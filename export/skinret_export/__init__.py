"""Turn a checkpoint into a bundle of four ONNX graphs, and prove that it does what PyTorch does."""
