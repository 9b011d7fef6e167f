"""Symbolic shapes: what is known of sizes that only a run fixes."""
