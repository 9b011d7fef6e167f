"""What a model is: graph, types, axes of every operator, ONNX in and out."""
