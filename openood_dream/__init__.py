"""Imagined out-of-distribution images for OpenOOD, and the proof of what they are worth."""

__version__ = "0.1.0"
