"""The parts of `scripts/soak.py faults`: each does one kind of damage and judges what came of it."""
