"""How the axes of every value depend on each other (docs/axes.md)."""
