"""How good a model's outputs are, by the labels of samples."""
