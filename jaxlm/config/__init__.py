"""A run's config: its schema, reading it from YAML, and its reference page."""
