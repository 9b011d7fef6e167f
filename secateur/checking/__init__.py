"""Running models: accuracy, latency, agreement and checks of what passes changed."""
