"""The directory of a run, what is logged into it, and its interruption."""
