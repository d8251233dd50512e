"""Turn a checkpoint into a bundle of four ONNX graphs, and prove that it does what PyTorch does."""

import skinret_training  # noqa: F401 - what it sets before torch and transformers load
