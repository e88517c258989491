"""Documents in a fixed order, made by any number of workers, and a buffer that shuffles them."""

import os
import random
import traceback
from collections import deque
from collections.abc import Iterator
from typing import final

import torch
from torch.utils.data import DataLoader, get_worker_info

from memtx.checks import require, require_positive
from memtx.data.fields import require_same
from memtx.data.protocols import Document, DocumentStream, Encoder, Limit, Row, Source, State

Chunk = list[tuple[int, Row]]
Made = list[tuple[int, list[Document]]]


@final
class _Refused:
    """A refusal on its way out of a worker: torch would write a traceback into its message."""

    def __init__(self, *, message: str, told: str) -> None:
        self.message = message
        self.told = told


@final
class _Making:
    """What a worker does: it makes documents of the rows that it is sent."""

    def __init__(self, *, encoder: Encoder, limit: Limit) -> None:
        self.encoder = encoder
        self.limit = limit

    def __getitem__(self, chunk: Chunk) -> Made | _Refused:
        try:
            return [(epoch, self.limit(self.encoder(row))) for epoch, row in chunk]
        except ValueError as error:
            if get_worker_info() is None:
                raise
            return _Refused(message=str(error), told=traceback.format_exc())


def _chunks(source: Source, *, states: deque[State], size: int) -> Iterator[Chunk]:
    """Read a source without end, and note where each chunk of it begins.

    It knows nothing of the documents: so these hold their loader, and the loader does not hold
    them, and its workers end as soon as it is dropped.
    """
    while True:
        states.append(source.state_dict())
        yield [source.next_row() for _ in range(size)]


def _apart(number: int) -> None:  # noqa: ARG001
    """Take a worker out of the group of processes that a terminal or torchrun asks to stop.

    The run ends behind a step, for which it may need documents; its workers end with it.
    """
    os.setpgrp()


def _as_it_is(made: Made | _Refused) -> Made | _Refused:
    return made


@final
class Documents:
    """The documents of a source, in its order.

    This process reads rows and sends them out in chunks; workers make documents of them, which
    come back in the order of the rows. So neither order nor position depends on the number of
    workers, and what they made ahead is no part of the position: it is made again.

    Args:
        source: where rows come from.
        encoder: makes a document of a row.
        limit: what becomes of a document that is longer than the context.
        num_workers: processes that make documents; 0, this one makes them.
        chunk: rows that are sent to a worker at a time.

    Raises:
        ValueError: if `chunk` is below 1 or `num_workers` below 0.

    Source: memtx's own, on `torch.utils.data.DataLoader` as a map over several processes that
    keeps order: its sampler reads. `StatefulDataLoader` of torchdata keeps one position a worker,
    which no other number of workers can take up.

    Example:
        >>> from memtx.data import RefuseLong, Shuffled, TokensEncoder
        >>> documents = Documents(
        ...     source=Shuffled(rows=[{"ids": [5, 6]}], seed=0),
        ...     encoder=TokensEncoder(input_ids="ids", labels=None), limit=RefuseLong(length=8),
        ...     num_workers=0, chunk=1)
        >>> documents.next_document()
        (0, {'input_ids': [5, 6], 'labels': [5, 6]})
    """

    def __init__(
        self, *, source: Source, encoder: Encoder, limit: Limit, num_workers: int, chunk: int
    ) -> None:
        require_positive(owner=self, sizes={"chunk": chunk})
        require(
            ok=num_workers >= 0,
            owner=self,
            rule="num_workers must not be negative",
            got={"num_workers": num_workers},
            remedy="pass 0 to make documents in this process",
        )
        self.source = source
        self.encoder = encoder
        self.limit = limit
        self.num_workers = num_workers
        self.chunk = chunk
        self._forget(rows=0, pieces=0)

    def _forget(self, *, rows: int, pieces: int) -> None:
        """Drop what was made ahead; go on behind so many rows, and pieces of the one after them."""
        self._made: Made = []
        self._from: State | None = None
        self._row, self._piece = rows, pieces
        self._states: deque[State] = deque()
        self._loader: Iterator[Made | _Refused] | None = None

    def next_document(self) -> tuple[int, Document]:
        """Give the next document and the number of its epoch.

        Raises:
            ValueError: if an epoch passes without a document.
        """
        barren = None
        while True:
            while self._row >= len(self._made):
                self._fetch()
            epoch, pieces = self._made[self._row]
            if self._piece < len(pieces):
                self._piece += 1
                return epoch, pieces[self._piece - 1]
            self._row, self._piece = self._row + 1, 0
            barren = epoch if barren is None else barren
            require(
                ok=epoch - barren <= 1,
                owner=self,
                rule="the rows of an epoch must make at least one document",
                got={"epoch": epoch - 1, "documents": 0},
                remedy="pass a limit that leaves something of them",
            )

    def _fetch(self) -> None:
        if self._loader is None:
            self._loader = self._start()
        made = next(self._loader)
        if isinstance(made, _Refused):
            error = ValueError(made.message)
            error.add_note(made.told)
            raise error
        self._row -= len(self._made)
        self._made = made
        self._from = self._states.popleft()

    def _start(self) -> Iterator[Made | _Refused]:
        loader: DataLoader[Made | _Refused] = DataLoader(
            _Making(encoder=self.encoder, limit=self.limit),  # type: ignore[arg-type]
            sampler=_chunks(self.source, states=self._states, size=self.chunk),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=_apart,
            # Its own, so that the numbers of the run's dropout are left alone.
            generator=torch.Generator(),
        )
        return iter(loader)

    def state_dict(self) -> State:
        """Give the position."""
        source = self.source.state_dict() if self._from is None else self._from
        return {"source": source, "rows": self._row, "pieces": self._piece}

    def load_state_dict(self, state: State) -> None:
        """Take up a position.

        Args:
            state: what `state_dict` gave.
        """
        self._forget(rows=state["rows"], pieces=state["pieces"])
        self.source.load_state_dict(state["source"])


@final
class ShuffleBuffer:
    """Documents in random order, as far as a buffer reaches.

    It is emptied at the end of every epoch, so that epochs do not mix. What it holds is part of
    the position.

    Args:
        documents: the documents.
        size: how many it holds.
        seed: decides the order.

    Raises:
        ValueError: if `size` is below 1.

    Source: the buffer of `tf.data` and `datasets`, with its content in the state.

    Example:
        >>> from memtx.data import Documents, RefuseLong, Streamed, TokensEncoder
        >>> documents = Documents(
        ...     source=Streamed(dataset=[{"ids": [n]} for n in range(9)]),
        ...     encoder=TokensEncoder(input_ids="ids", labels=None), limit=RefuseLong(length=8),
        ...     num_workers=0, chunk=1)
        >>> buffer = ShuffleBuffer(documents=documents, size=4, seed=0)
        >>> sorted(buffer.next_document()[1]["input_ids"][0] for _ in range(9))
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(self, *, documents: DocumentStream, size: int, seed: int) -> None:
        require_positive(owner=self, sizes={"size": size})
        self.documents = documents
        self.size = size
        self.seed = seed
        self._epoch = 0
        self._held: list[Document] = []
        self._drawn = 0
        # The first document of the next epoch, read to see that this one is over.
        self._later: tuple[int, Document] | None = None

    def next_document(self) -> tuple[int, Document]:
        """Give the next document and the number of its epoch."""
        self._fill()
        # Of seed and count alone, so that the state of a generator need not be kept.
        draw = random.Random(self.seed * 1_000_003 + self._drawn).randrange(len(self._held))
        self._drawn += 1
        self._held[draw], self._held[-1] = self._held[-1], self._held[draw]
        return self._epoch, self._held.pop()

    def _fill(self) -> None:
        if not self._held and self._later is not None:
            self._epoch, document = self._later
            self._held, self._later = [document], None
        while self._later is None and len(self._held) < self.size:
            epoch, document = self.documents.next_document()
            if self._held and epoch != self._epoch:
                self._later = (epoch, document)
            else:
                self._epoch = epoch
                self._held.append(document)

    def state_dict(self) -> State:
        """Give the position, with the documents held."""
        return {
            "seed": self.seed,
            "documents": self.documents.state_dict(),
            "epoch": self._epoch,
            "held": list(self._held),
            "drawn": self._drawn,
            "later": None if self._later is None else list(self._later),
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a position.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: if it was kept with another seed.
        """
        require_same(state, owner=self, own={"seed": self.seed})
        self.documents.load_state_dict(state["documents"])
        self._epoch, self._drawn = state["epoch"], state["drawn"]
        self._held = list(state["held"])
        later = state["later"]
        self._later = None if later is None else (later[0], later[1])
