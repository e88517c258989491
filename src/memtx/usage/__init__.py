"""How a memory is used: what routers choose, what texts read, and what it does to answers."""

from memtx.usage.effects import (
    ChapterEffect,
    Comparison,
    answer_log_probability,
    chapter_effects,
    compare_next_tokens,
    memory_off,
)
from memtx.usage.nearest import NearTokens, Snippet, alike_tokens, snippets, written_tokens
from memtx.usage.reads import Passage, Reads, overlap
from memtx.usage.recording import Recording, record_reads
from memtx.usage.removal import delete_chapters, without_chapters
from memtx.usage.routers import ChapterUsage, RoutingStatistics, watch_routing

__all__ = [
    "ChapterEffect",
    "ChapterUsage",
    "Comparison",
    "NearTokens",
    "Passage",
    "Reads",
    "Recording",
    "RoutingStatistics",
    "Snippet",
    "alike_tokens",
    "answer_log_probability",
    "chapter_effects",
    "compare_next_tokens",
    "delete_chapters",
    "memory_off",
    "overlap",
    "record_reads",
    "snippets",
    "watch_routing",
    "without_chapters",
    "written_tokens",
]
