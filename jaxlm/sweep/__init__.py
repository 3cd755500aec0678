"""Searches for settings: many runs of one config, whose keys Optuna chooses."""
