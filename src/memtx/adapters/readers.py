"""Who reads what: for all rows of every batch, or for each row of a thread's batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from memtx.adapters.choices import Choice
from memtx.adapters.insertion import Insertion
from memtx.adapters.threads import Here


@final
@dataclass(frozen=True, kw_only=True)
class Seat:
    """An insertion of a memory that is read somewhere now.

    Args:
        insertion: the insertion.
        serial: number of the memory, never given to another.
        first_slot: number of the first layer of a cache that the memory may use.
        keeps_states: whether the memory keeps there what is not keys and values.

    Source: memtx's own.

    Example:
        >>> Seat.__name__  # made by MemoryLibrary
        'Seat'
    """

    insertion: Insertion
    serial: int
    first_slot: int
    keeps_states: bool


@final
@dataclass(frozen=True, kw_only=True)
class Readers:
    """What is read at one place: insertions by number, and the numbers that each row names.

    Args:
        seats: what is read there.
        insertions: those of the seats.
        kinds: for each of them, a number that those of one signature share; None for one that must
            be read by itself.
        stages: one after another, for each row the numbers that it reads side by side.
        alike: whether all rows read the same; the stages have one row then.

    Source: memtx's own.

    Example:
        >>> Readers(seats=[], insertions=[], kinds=[], stages=[], alike=True).alike
        True
    """

    seats: list[Seat]
    insertions: list[Insertion]
    kinds: list[int | None]
    stages: list[list[list[int]]]
    alike: bool


@final
@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Choices, and what they come to at each place.

    Args:
        choices: what each row reads; one choice for all rows if `everyone`.
        everyone: whether one choice is for all rows of any batch.
        places: what is read, by the name of the place; at others nothing is.

    Source: memtx's own.

    Example:
        >>> Assignment(choices=["anna"], everyone=True, places={}).everyone
        True
    """

    choices: list[Choice]
    everyone: bool
    places: Mapping[str, Readers]


@final
class Rows:
    """What all places of a library know of the rows of a forward.

    What is activated holds in every thread; rows are named in the thread that names them, so that
    several threads may ask one library at once. A copy has what is activated alone.

    Args:
        None: it takes no arguments.

    Source: memtx's own.

    Example:
        >>> rows = Rows()
        >>> with rows.named(Assignment(choices=["anna", None], everyone=False, places={})):
        ...     rows.now.choices
        ['anna', None]
    """

    def __init__(self) -> None:
        self.activated = Assignment(choices=[None], everyone=True, places={})
        self._here = Here()
        self._open: list[Assignment] = []

    def __getstate__(self) -> dict[str, object]:
        """Leave out what belongs to the blocks that are open now."""
        return {**vars(self), "_open": []}

    @property
    def now(self) -> Assignment:
        """What the rows of this thread's forwards read."""
        named: Assignment | None = self._here.get("named", None)
        return self.activated if named is None else named

    @property
    def repeats(self) -> bool:
        """Whether a batch of this thread may hold each row several times, next to each other."""
        return bool(self._here.get("repeats", False))

    @contextmanager
    def named(self, assignment: Assignment) -> Iterator[None]:
        """Let the rows of this thread read otherwise inside a `with` block.

        Args:
            assignment: what they read.
        """
        self._open.append(assignment)
        try:
            with self._here.keeping("named", assignment, default=None):
                yield
        finally:
            self._open.remove(assignment)

    @contextmanager
    def repeating(self, repeats: bool) -> Iterator[None]:
        """Say for this thread, inside a `with` block, whether rows may be repeated.

        Args:
            repeats: whether they may.
        """
        with self._here.keeping("repeats", repeats, default=False):
            yield

    def chosen(self) -> list[Choice]:
        """Give what is activated, and what is named in any thread now."""
        return [choice for each in [self.activated, *self._open] for choice in each.choices]
