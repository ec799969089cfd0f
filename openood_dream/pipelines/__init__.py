"""Whole jobs: train a network, score it, compare methods over seeds, and the stages of the imagination by name."""
