"""A config for a file of labelled rows, written after a look at the file: `jaxlm init`."""
