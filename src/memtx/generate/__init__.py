"""Answers of a model, with its memory on or off."""

from memtx.generate.greedy import greedy, padding_token

__all__ = ["greedy", "padding_token"]
