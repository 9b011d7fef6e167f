"""The plan: operations on tensors, between ONNX nodes and kernels; fusion, layouts, memory."""
