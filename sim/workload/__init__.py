"""What runs: language models from their shape, the vector unit, ONNX graphs."""
