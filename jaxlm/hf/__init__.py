"""HF-format checkpoints, both ways: `table` maps parameter names, `io` reads and writes directories."""
