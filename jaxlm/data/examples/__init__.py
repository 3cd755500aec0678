"""Labelled rows for fine-tuning: examples, packing, order, batches."""
