"""How a bank whose rows lie elsewhere is read: which chapters a read touches, and the read."""

import threading
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from memtx.checks import refusal, require
from memtx.memory.offloaded_cache import ChapterCache, Places, Traffic
from memtx.memory.offloaded_rows import RowLayout, Store, as_chapters


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The rows of a read, by chapter; all on the host.

    Args:
        distinct: the chapters that are touched, each once, in order.
        which: each row's chapter, as its place on `distinct`.
        within: each row's place in its chapter.
        shape: of the indices.

    Source: memtx's own.

    Example:
        >>> asked = asked_of(torch.tensor([5, -1]), num_rows=8, size=4, owner="bank")
        >>> asked.distinct, asked.which.tolist(), asked.within.tolist()
        ([1], [0, 0], [1, 3])
    """

    distinct: list[int]
    which: Tensor
    within: Tensor
    shape: torch.Size


def asked_of(indices: Tensor, *, num_rows: int, size: int, owner: object) -> Asked:
    """Find out which chapters a read touches; the host waits for the indices.

    Args:
        indices: which rows; negative ones count from the end.
        num_rows: how many there are.
        size: rows of a chapter.
        owner: the bank.

    Raises:
        IndexError: if there is no such row.
    """
    numbers = indices.detach().to("cpu").flatten()
    outside = numbers[(numbers < -num_rows) | (numbers >= num_rows)]
    if outside.numel():
        message = refusal(
            owner=owner,
            rule=f"an index must lie in [-{num_rows}, {num_rows})",
            got={"index": int(outside[0])},
            remedy="ask for a memory token that is there",
        )
        raise IndexError(message)
    numbers = torch.where(numbers < 0, numbers + num_rows, numbers)
    distinct, which = (numbers // size).unique(return_inverse=True)
    return Asked(
        distinct=distinct.tolist(), which=which, within=numbers % size, shape=indices.shape
    )


def read(asked: Asked, *, cache: ChapterCache, layout: RowLayout) -> Tensor:
    """Give the memory tokens of a read, on the device of the cache.

    Args:
        asked: the rows.
        cache: the chapters that are there.
        layout: of the rows.
    """

    def rows(chapters: list[int], which: Tensor, within: Tensor) -> Tensor:
        def take(store: Store, places: Places) -> Tensor:
            at = torch.tensor(places, dtype=torch.long)
            return layout.values(store, at, which, within)

        return cache.read(chapters, take)

    step = cache.num_places
    if len(asked.distinct) <= step:
        values = rows(asked.distinct, asked.which, asked.within)
    else:
        values = torch.empty(0)
        for start in range(0, len(asked.distinct), step):
            part = (asked.which >= start) & (asked.which < start + step)
            found = rows(
                asked.distinct[start : start + step], asked.which[part] - start, asked.within[part]
            )
            if not start:
                values = found.new_empty(asked.which.shape[0], layout.width)
            values[part.to(values.device)] = found
    return layout.tokens(values.view(*asked.shape, layout.width))


def read_whole(numbers: Tensor, *, cache: ChapterCache, layout: RowLayout) -> Tensor | None:
    """Give all memory tokens of chapters; None where there are not that many places, or none asked.

    Args:
        numbers: of the chapters; the host waits for them.
        cache: the chapters that are there.
        layout: of the rows.
    """
    asked = numbers.tolist()
    distinct = list(dict.fromkeys(asked))
    count = next(iter(cache.chapters.values())).shape[0]
    if not asked or len(distinct) > cache.num_places or min(asked) < 0 or max(asked) >= count:
        return None

    def take(store: Store, places: Places) -> Tensor:
        at = dict(zip(distinct, places, strict=True))
        return layout.whole(store, cache.uploaded(tuple(at[each] for each in asked)))

    return layout.tokens(cache.read(distinct, take))


def require_resident(*, owner: object, num_chapters: int, num_places: int) -> None:
    """Refuse to give all tokens of a bank that is larger than what is kept where it is read.

    Args:
        owner: the bank.
        num_chapters: how many chapters it has.
        num_places: how many are kept.

    Raises:
        ValueError: if it is larger.
    """
    require(
        ok=num_chapters <= num_places,
        owner=owner,
        rule="all tokens can only be given at once where all chapters have room",
        got={"chapters": num_chapters, "num_resident_chapters": num_places},
        remedy="read it with a RoutedMemoryCrossAttention, or ask for rows()",
    )


def require_numbers(rows: Store, *, owner: object) -> None:
    """Refuse to read rows without numbers.

    Args:
        rows: the tensors that hold them.
        owner: the bank.

    Raises:
        ValueError: if one is on the meta device.
    """
    if not any(each.is_meta for each in rows.values()):
        return  # asked at every read: the message is made when it is needed
    require(
        ok=False,
        owner=owner,
        rule="the rows must hold numbers to be read",
        got={name: str(each.device) for name, each in rows.items()},
        remedy="load them, or make the bank outside of torch.device('meta')",
    )


@final
class Residents:
    """The chapters that a bank keeps, on each device that reads it. A copy starts with none.

    Args:
        num_places: how many chapters are kept on a device.

    Source: memtx's own.

    Example:
        >>> residents = Residents(num_places=2)
        >>> rows = {"tokens": torch.zeros(6, 3)}
        >>> residents.on(torch.device("cpu"), rows=rows, entries=2).num_places
        2
        >>> residents.nbytes
        48
    """

    def __init__(self, *, num_places: int) -> None:
        self.num_places = num_places
        self.traffic = Traffic(hits=0, misses=0, fetched_ahead=0, bytes_moved=0)
        self._caches: dict[torch.device, ChapterCache] = {}
        self._form: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copy sizes alone: threads and streams have no copy."""
        return {"num_places": self.num_places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with nothing."""
        self.__init__(**state)

    @property
    def nbytes(self) -> int:
        """How many bytes the places take."""
        return sum(cache.nbytes for cache in self._caches.values())

    def on(self, device: torch.device, *, rows: Store, entries: int) -> ChapterCache:
        """Give what is kept on a device; nothing any more if rows were changed or exchanged.

        Args:
            device: where.
            rows: the rows on the host.
            entries: how many make a chapter.
        """
        form = [_form(each) for each in rows.values()]
        with self._lock:
            if form != self._form:
                self._caches = {}
                self._form = form
            if device not in self._caches:
                self._caches[device] = ChapterCache(
                    chapters=as_chapters(rows, entries=entries),
                    num_places=self.num_places,
                    device=device,
                    traffic=self.traffic,
                )
            return self._caches[device]

    def forget(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._caches = {}


def _form(tensor: Tensor) -> tuple[object, ...]:
    """Give what changes when a tensor does: torch counts changes in place."""
    count = None if tensor.is_inference() else tensor._version
    return count, tensor.data_ptr(), tensor.dtype
