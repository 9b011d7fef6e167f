"""Prune, quantize and compile ONNX models for edge devices."""
