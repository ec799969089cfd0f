"""OpenOOD's YAML grammar, typed and checked; it knows nothing of any method."""
