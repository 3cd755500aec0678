"""Text in: sources, cleaning, tokenizers, packing and the loader."""
