"""Building TensorIR: loops, loads and stores of a kernel, and vectors of a target."""
