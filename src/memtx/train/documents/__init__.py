"""A document turned into a memory: what is composed, and what is measured of it."""

from memtx.train.documents.background import Background, background_of, own_background
from memtx.train.documents.measures import Measures, Passage, measures, passages_of
from memtx.train.documents.memory import memory_for_text
from memtx.train.documents.training import TextLesson, text_trainer

__all__ = [
    "Background",
    "Measures",
    "Passage",
    "TextLesson",
    "background_of",
    "measures",
    "memory_for_text",
    "own_background",
    "passages_of",
    "text_trainer",
]
