"""Where rows and documents come from: files, TFDS, built-in data; and cleaning."""
