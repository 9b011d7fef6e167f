"""What compiles and runs a model."""
