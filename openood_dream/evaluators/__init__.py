"""Scores networks: one forward pass for each data set, OpenOOD's metrics and files, and how much of them is chance."""
