"""Losses: cross-entropy in chunks of tokens, and the loss of a model on a batch."""
