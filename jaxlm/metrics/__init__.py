"""Scores of predictions beside gold labels."""
