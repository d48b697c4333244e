"""Winnow: choose which unlabelled patches a contrastive encoder trains on, round by round, and train it."""

__version__ = "0.1.0"
