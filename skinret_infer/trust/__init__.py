"""The signatures of bundles, the audit log, and the check of ONNX graphs from strangers."""
