"""The exported ONNX graph as a file: writing, reading and converting it."""
