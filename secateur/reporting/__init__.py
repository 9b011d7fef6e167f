"""What a run found out, as data, JSON and Markdown."""
