"""Checkpoints in Hugging Face format: reading, writing, downloading, exporting."""
