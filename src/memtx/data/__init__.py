"""Facts and texts as rows of tokens, and rows as batches."""

from memtx.data.batches import Batches
from memtx.data.facts import Fact, FactRows, fact_tokens, read_facts
from memtx.data.text import TextRows, read_documents

__all__ = [
    "Batches",
    "Fact",
    "FactRows",
    "TextRows",
    "fact_tokens",
    "read_documents",
    "read_facts",
]
