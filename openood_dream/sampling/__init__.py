"""How outliers are found among embeddings: pure functions on tensors."""
