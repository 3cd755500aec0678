"""Benchmarks: speed of fine-tuning, of reading corpora, and of scaling over devices."""
