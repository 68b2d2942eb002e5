"""Models on ONNX Runtime: a second engine for the CPU."""
