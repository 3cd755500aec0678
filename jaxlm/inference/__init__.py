"""A trained model applied: evaluation, prediction, generation."""
