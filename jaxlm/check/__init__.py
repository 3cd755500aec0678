"""What `jaxlm check` finds in the labelled rows that a config names."""
