"""What changes a model: passes, their manager, and the text form of pipelines of them."""
