"""Checkpoint to ONNX, ONNX to a deployable bundle."""
