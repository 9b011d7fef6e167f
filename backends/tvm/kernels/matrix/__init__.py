"""Matrix products: by constant weights, of two run-time values, and their dot products."""
