"""The jobs behind the commands: one step on a file, simplification, the whole pipeline."""
