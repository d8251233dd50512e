"""Turn a checkpoint into a bundle of four ONNX graphs, and prove that it does what PyTorch does."""

import skinret_training  # noqa: F401 - it sets variables before torch and transformers load
