"""What the parts of a data pipeline need of each other.

A row is what a dataset gives: a dict by field. A document is `input_ids` and `labels`, two lists of
one length. A packed row has `position_ids` as well. Every state is made of plain lists, dicts,
numbers, strings, booleans and None, so that it can be written as JSON.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Row = dict[str, Any]
Message = dict[str, Any]
Document = dict[str, list[int]]
Arrays = dict[str, NDArray[np.int64]]
Batch = dict[str, Tensor]
State = dict[str, Any]


@runtime_checkable
class Stateful(Protocol):
    """Has a position that can be kept and taken up again, in another object made alike."""

    def state_dict(self) -> State:
        """Give the position: what comes next follows from it alone."""

    def load_state_dict(self, state: State) -> None:
        """Take up a position."""


@runtime_checkable
class ArrayRows(Protocol):
    """Rows of one length that lie in arrays: a batch of them is not made number by number."""

    def arrays(self, numbers: list[int]) -> Arrays:
        """Give copies of some rows, each field as an array `[rows, length]`."""


@runtime_checkable
class Stream(Stateful, Protocol):
    """An endless sequence of batches, the same in all processes, of which each takes its own."""

    def next_batch(self, *, rank: int, world_size: int) -> Batch:
        """Give this process's batch of the next `world_size`, and go past all of them."""


@runtime_checkable
class Source(Stateful, Protocol):
    """Rows of a dataset, epoch after epoch without end."""

    def next_row(self) -> tuple[int, Row]:
        """Give the next row and the number of its epoch."""


@runtime_checkable
class DocumentStream(Stateful, Protocol):
    """Documents, epoch after epoch without end."""

    def next_document(self) -> tuple[int, Document]:
        """Give the next document and the number of its epoch."""


@runtime_checkable
class Packing(Stateful, Protocol):
    """Lays documents into rows."""

    @property
    def length(self) -> int | None:
        """Places of a row; None, if rows are as long as the longest of their batch."""

    def add(self, document: Document) -> list[Document]:
        """Lay a document down and give the rows that are done."""


@runtime_checkable
class Encoder(Protocol):
    """Makes a document of a row. It is sent to workers, so it can be pickled."""

    def __call__(self, row: Row) -> Document:
        """Give the document."""


@runtime_checkable
class Limit(Protocol):
    """What becomes of a document that is longer than the context."""

    def __call__(self, document: Document) -> list[Document]:
        """Give the documents to train on, none of them too long."""


@runtime_checkable
class Layout(Protocol):
    """Where in a row the messages of a conversation are."""

    def messages(self, row: Row) -> list[Message]:
        """Give the messages, each with `role` and `content`."""


@runtime_checkable
class Template(Protocol):
    """Writes a conversation as tokens."""

    def encode(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """Give the tokens, and for each whether the assistant has to say it."""

    def prompt(self, messages: list[Message]) -> list[int]:
        """Give the tokens up to where the assistant's next answer begins."""
