"""Tokenizers: loading, encoding, training, saving."""
