"""Answers of a model, with its memory on or off, and a memory made ready for them."""

from memtx.generate.freeze import FrozenMemory, freeze_for_inference
from memtx.generate.greedy import greedy, padding_token
from memtx.generate.samples import samples
from memtx.memory.storage import AsProjected, InDtype, InEightBits

__all__ = [
    "AsProjected",
    "FrozenMemory",
    "InDtype",
    "InEightBits",
    "freeze_for_inference",
    "greedy",
    "padding_token",
    "samples",
]
