"""What of TensorRT can be checked without a GPU; docs/tensorrt.md says what that proves."""
