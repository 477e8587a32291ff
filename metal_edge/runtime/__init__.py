"""Runners: one interface over ONNX Runtime and TensorRT."""
