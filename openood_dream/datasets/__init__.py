"""Image lists in OpenOOD's layout, their loaders, and the benchmarks that are made here."""
