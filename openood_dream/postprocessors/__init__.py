"""Detectors by OpenOOD's names. Importing `known` registers all of them."""
