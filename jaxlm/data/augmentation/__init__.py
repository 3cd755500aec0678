"""Augmentation of labelled rows: words of a text edited at random, without a model."""
