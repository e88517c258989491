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
from memtx.usage.particular import most_particular, read_counts
from memtx.usage.reads import Passage, Reads, overlap
from memtx.usage.recording import Recording, record_reads
from memtx.usage.removal import delete_chapters, without_chapters
from memtx.usage.routers import ChapterUsage, RoutingStatistics, watch_routing
from memtx.usage.states import centres, evenly_spaced, text_states

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
    "centres",
    "chapter_effects",
    "compare_next_tokens",
    "delete_chapters",
    "evenly_spaced",
    "memory_off",
    "most_particular",
    "overlap",
    "read_counts",
    "record_reads",
    "snippets",
    "text_states",
    "watch_routing",
    "without_chapters",
    "written_tokens",
]
