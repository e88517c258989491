"""Rows of a dataset, epoch after epoch, with a position that can be kept."""

import copy
from collections.abc import Iterator
from typing import Any, Protocol, final, runtime_checkable

import torch

from memtx.checks import require
from memtx.data.fields import require_one_split, require_same
from memtx.data.protocols import Row, State


@runtime_checkable
class Table(Protocol):
    """Rows by number, as `datasets.Dataset` and lists have them."""

    def __len__(self) -> int:
        """Give the number of rows."""

    def __getitem__(self, index: int, /) -> Any:
        """Give one row."""


def epoch_order(*, seed: int, epoch: int, count: int) -> list[int]:
    """Give the order of one epoch, a pure function of its arguments.

    Args:
        seed: decides every order.
        epoch: number of the epoch, from 0.
        count: how many things to order.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


@final
class Shuffled:
    """Rows by number, every epoch in an order of its own. The position is a number.

    Args:
        rows: a map-style `datasets.Dataset`, or a list of dicts.
        seed: decides every order.

    Raises:
        ValueError: if there are no rows, or a dict of splits is passed.

    Source: the stateless order of deterministic loaders (as in MosaicML's streaming).

    Example:
        >>> source = Shuffled(rows=[{"text": "a"}, {"text": "b"}], seed=0)
        >>> sorted(source.next_row()[1]["text"] for _ in range(2))
        ['a', 'b']
        >>> source.state_dict()
        {'rows': 2, 'seed': 0, 'epoch': 1, 'place': 0}
    """

    def __init__(self, *, rows: Table, seed: int) -> None:
        require_one_split(rows, owner=self)
        require(
            ok=hasattr(rows, "__len__") and hasattr(rows, "__getitem__"),
            owner=self,
            rule="rows must have a length and be given by number",
            got={"rows": type(rows).__name__},
            remedy="pass a streaming dataset to Streamed, and shuffle by a ShuffleBuffer",
        )
        require(
            ok=len(rows) > 0,
            owner=self,
            rule="rows must not be empty",
            got={"rows": len(rows)},
            remedy="pass a split with rows",
        )
        self.rows = rows
        self.seed = seed
        self._epoch = 0
        self._place = 0
        self._order: list[int] = []

    def next_row(self) -> tuple[int, Row]:
        """Give the next row and the number of its epoch."""
        epoch, place = self._epoch, self._place
        if not self._order:
            self._order = epoch_order(seed=self.seed, epoch=epoch, count=len(self.rows))
        self._place += 1
        row = self.rows[self._order[place]]
        if self._place == len(self.rows):
            self._epoch, self._place, self._order = epoch + 1, 0, []
        return epoch, row

    def state_dict(self) -> State:
        """Give the position."""
        own = {"rows": len(self.rows), "seed": self.seed}
        return {**own, "epoch": self._epoch, "place": self._place}

    def load_state_dict(self, state: State) -> None:
        """Take up a position.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: if it was kept over another number of rows, or with another seed.
        """
        require_same(state, owner=self, own={"rows": len(self.rows), "seed": self.seed})
        self._epoch, self._place, self._order = state["epoch"], state["place"], []


@final
class Streamed:
    """Rows one after the other, as a streaming dataset gives them.

    A `datasets.IterableDataset` keeps its position itself, and takes it up without reading what
    went before; of any other iterable the rows that were read are read again and left out. The
    dataset is copied, as two readers of one would mix up its position.

    Args:
        dataset: a `datasets.IterableDataset`, or something that starts anew at every `iter`.

    Raises:
        ValueError: if a dict of splits is passed, or the dataset was shuffled through a buffer of
            `datasets`, whose content no position holds.

    Source: `datasets.IterableDataset.state_dict`.

    Example:
        >>> source = Streamed(dataset=[{"text": "a"}, {"text": "b"}])
        >>> [source.next_row() for _ in range(3)]
        [(0, {'text': 'a'}), (0, {'text': 'b'}), (1, {'text': 'a'})]
    """

    def __init__(self, *, dataset: Any) -> None:
        require_one_split(dataset, owner=self)
        size = _buffer_size(dataset)
        require(
            ok=size <= 1,
            owner=self,
            rule="a dataset must not be shuffled through a buffer of its own, as its rows would be "
            "lost where a run is resumed",
            got={"buffer_size": size},
            remedy="pass buffer_size=1 to dataset.shuffle, which shuffles files alone, and use a "
            "ShuffleBuffer",
        )
        self.dataset = dataset
        self._keeps = hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
        self._own = copy.deepcopy(dataset) if self._keeps else dataset
        self._epoch = 0
        self._read = 0
        self._rows: Iterator[Row] | None = None
        # The dataset's own position, where it was taken up and no row was read since: until then
        # the dataset does not know it itself.
        self._taken_up: State | None = None

    def next_row(self) -> tuple[int, Row]:
        """Give the next row and the number of its epoch.

        Raises:
            ValueError: if the dataset gives no rows, or does not start anew.
        """
        while True:
            if self._rows is None:
                self._rows = self._start(None)
            row = next(self._rows, None)
            self._taken_up = None
            if row is not None:
                self._read += 1
                return self._epoch, row
            require(
                ok=self._read > 0,
                owner=self,
                rule="the dataset must give rows in every epoch",
                got={"epoch": self._epoch, "rows": 0},
                remedy="pass a split with rows, and something that starts anew at every iter(...)",
            )
            self._epoch, self._read, self._rows = self._epoch + 1, 0, None

    def _start(self, kept: State | None) -> Iterator[Row]:
        if hasattr(self._own, "set_epoch"):
            self._own.set_epoch(self._epoch)
        if self._keeps:
            # Also without one: what was loaded before is used in every epoch to come.
            self._own.load_state_dict(kept)
        return iter(self._own)

    def state_dict(self) -> State:
        """Give the position."""
        kept = self._taken_up
        if kept is None and self._keeps and self._read:
            kept = self._own.state_dict()
        return {"epoch": self._epoch, "read": self._read, "dataset": kept}

    def load_state_dict(self, state: State) -> None:
        """Take up a position.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: if the dataset has become shorter.
        """
        self._epoch, self._read = state["epoch"], state["read"]
        self._taken_up = state["dataset"]
        self._rows = self._start(self._taken_up)
        if self._keeps:
            return
        skipped = sum(1 for _ in zip(range(self._read), self._rows, strict=False))
        require(
            ok=skipped == self._read,
            owner=self,
            rule=f"the dataset must still have the {self._read} rows that were read",
            got={"rows": skipped},
            remedy="make the data as in the run that is resumed",
        )


def _buffer_size(dataset: Any) -> int:
    """Give the size of the buffer that `datasets` shuffles through, 0 without one."""
    size, inner = 0, getattr(dataset, "_ex_iterable", None)
    while inner is not None:
        if "Shuffle" in type(inner).__name__:
            size = max(size, int(getattr(inner, "buffer_size", 0)))
        inner = getattr(inner, "ex_iterable", None)
    return size
