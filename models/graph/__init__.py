"""The exported ONNX graph as a file: written, read back, converted."""
