"""ONNX graphs rewritten until every node has a lowering: no sequences, loops, contrib operators."""
