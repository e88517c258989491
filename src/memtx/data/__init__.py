"""Datasets as documents, documents as rows, rows as batches, with a position that can be kept."""

from memtx.data.batches import Batches
from memtx.data.contexts import ContextRows, begin_tokens, pieces_of, read_again, read_on
from memtx.data.documents import Documents, ShuffleBuffer
from memtx.data.edits import Edit, EditFields, read_edits
from memtx.data.encoders import ChatEncoder, TextEncoder, TokensEncoder
from memtx.data.facts import Fact, FactRows, fact_tokens, read_facts
from memtx.data.layouts import Instruction, Messages, PromptCompletion
from memtx.data.limits import CutLong, RefuseLong, SplitLong
from memtx.data.packing import FullRows, OnePerRow, WholeDocuments
from memtx.data.protocols import Stream
from memtx.data.questions import Question, read_questions
from memtx.data.sources import Shuffled, Streamed
from memtx.data.streams import StreamBatches
from memtx.data.templates import PlainTemplate, TokenizerTemplate
from memtx.data.text import TextRows, read_documents

__all__ = [
    "Batches",
    "ChatEncoder",
    "ContextRows",
    "CutLong",
    "Documents",
    "Edit",
    "EditFields",
    "Fact",
    "FactRows",
    "FullRows",
    "Instruction",
    "Messages",
    "OnePerRow",
    "PlainTemplate",
    "PromptCompletion",
    "Question",
    "RefuseLong",
    "ShuffleBuffer",
    "Shuffled",
    "SplitLong",
    "Stream",
    "StreamBatches",
    "Streamed",
    "TextEncoder",
    "TextRows",
    "TokenizerTemplate",
    "TokensEncoder",
    "WholeDocuments",
    "begin_tokens",
    "fact_tokens",
    "pieces_of",
    "read_again",
    "read_documents",
    "read_edits",
    "read_facts",
    "read_on",
    "read_questions",
]
