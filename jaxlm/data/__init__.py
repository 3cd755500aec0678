"""From files to batches: sources, labelled examples, corpora."""
