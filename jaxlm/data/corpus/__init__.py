"""Corpora for pretraining: documents, the token cache, rows, batches."""
