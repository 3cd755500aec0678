"""The train loop, its state, checkpoints and end."""
