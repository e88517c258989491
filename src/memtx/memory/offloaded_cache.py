"""The chapters of a bank that are kept where they are read, least recently read out first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from memtx.checks import require
from memtx.memory.offloaded_rows import Store
from memtx.memory.offloaded_streams import order_of
from memtx.ops.tensor_files import is_mapped, release, will_need

T = TypeVar("T")

# Where chapters lie in the store.
Places = tuple[int, ...]
# Which chapter goes to which place.
_Moves = list[tuple[int, int]]
# Of windows that are read at the same time there are not many.
_MOST_UPLOADED = 1024


@final
@dataclass(kw_only=True)
class Traffic:
    """What was asked of the chapters that are kept where they are read, and what it cost.

    A read asks once for each chapter that it touches, however many of its tokens it takes.

    Args:
        hits: chapters that were asked for and were there, or already on their way.
        misses: chapters that were asked for and had to be fetched.
        fetched_ahead: chapters that were fetched before anyone asked for them.
        bytes_moved: bytes that were copied to where they are read, by misses and ahead of them.

    Source: memtx's own.

    Example:
        >>> Traffic(hits=3, misses=1, fetched_ahead=0, bytes_moved=4096).misses
        1
    """

    hits: int
    misses: int
    fetched_ahead: int
    bytes_moved: int


@final
class ChapterCache:
    """Chapters of rows on one device, a fixed number of places for them.

    Threads may read and fetch at the same time. On a GPU what is fetched ahead is copied on a
    stream of its own; a place is only overwritten when no read of it is under way any more, on any
    stream, and only read when its copy is done.

    Args:
        chapters: the rows on the host, cut into chapters; of a file, or (for a GPU) pinned.
        num_places: how many chapters are kept.
        device: where.
        traffic: counts.

    Source: memtx's own; the pages of an operating system.

    Example:
        >>> chapters = {"tokens": torch.arange(6.0).view(3, 2, 1)}
        >>> traffic = Traffic(hits=0, misses=0, fetched_ahead=0, bytes_moved=0)
        >>> cache = ChapterCache(
        ...     chapters=chapters, num_places=2, device=torch.device("cpu"), traffic=traffic)
        >>> cache.read([2, 0], lambda store, at: store["tokens"][list(at)].flatten().tolist())
        [4.0, 5.0, 0.0, 1.0]
        >>> traffic
        Traffic(hits=0, misses=2, fetched_ahead=0, bytes_moved=16)
    """

    def __init__(
        self, *, chapters: Store, num_places: int, device: torch.device, traffic: Traffic
    ) -> None:
        self.chapters = chapters
        self.num_places = num_places
        self.device = device
        self.traffic = traffic
        self._changed = threading.Condition()
        self._places: OrderedDict[int, int] = OrderedDict()  # by chapter, least recently read first
        self._free = list(range(num_places))
        self._coming: set[int] = set()
        self._order = order_of(device)
        self._done: dict[int, Any] = {}  # by chapter, when its copy on the side stream is done
        self._store = self._new_store()
        self._uploaded: dict[Places, Tensor] = {}
        self._worker: ThreadPoolExecutor | None = None

    def _new_store(self) -> Store:
        # A tensor that was made in inference mode could not be written outside of it.
        with torch.inference_mode(mode=False):
            store = {
                name: each.new_empty(self.num_places, *each.shape[1:], device=self.device)
                for name, each in self.chapters.items()
            }
        self._order.keeps(list(store.values()))
        return store

    @property
    def nbytes(self) -> int:
        """How many bytes the places take."""
        return sum(each.nbytes for each in self._store.values())

    def resident(self) -> list[int]:
        """Give the chapters that are here, least recently read first."""
        with self._changed:
            return [each for each in self._places if each not in self._coming]

    def read(self, chapters: Sequence[int], take: Callable[[Store, Places], T]) -> T:
        """Take something of chapters, at most as many as there are places for.

        Args:
            chapters: which, each once.
            take: takes it, of the store and the places of the chapters in it.
        """
        require(
            ok=len(chapters) <= self.num_places,
            owner=self,
            rule="a read must take at most as many chapters as there are places for",
            got={"chapters": len(chapters), "num_places": self.num_places},
            remedy="read them in several parts",
        )
        with self._changed:
            wanted = set(chapters)
            self._changed.wait_for(lambda: self._can_hold(wanted))
            missing = [each for each in chapters if each not in self._places]
            self.traffic.misses += len(missing)
            self.traffic.hits += len(chapters) - len(missing)
            self._order.wait_for([self._order.last_read()])
            if missing:
                moves = self._give_places(missing, keep=wanted, ahead=False)
                try:
                    self._copy(moves)
                except BaseException:
                    self._forget(moves)
                    raise
            for each in chapters:
                self._places.move_to_end(each)
            self._wait_for_copies(chapters)
            found = take(self._store, tuple(self._places[each] for each in chapters))
            self._order.note_read()
            return found

    def uploaded(self, places: Places) -> Tensor:
        """Give places as a tensor on the device; inside a read, which is ordered among the others.

        The same are asked for at every token of a window: they are kept.

        Args:
            places: which.
        """
        if len(self._uploaded) > _MOST_UPLOADED:
            self._uploaded.clear()
        if places not in self._uploaded:
            with torch.inference_mode(mode=False):
                self._uploaded[places] = torch.tensor(places, dtype=torch.long, device=self.device)
        return self._uploaded[places]

    def _wait_for_copies(self, chapters: Sequence[int]) -> None:
        """Let the current stream wait for copies on the side stream, and forget what is done."""
        under_way = [each for each in chapters if each in self._done]
        self._order.wait_for([self._done[each] for each in under_way])
        for each in under_way:
            if self._done[each].query():
                del self._done[each]

    def fetch_ahead(self, chapters: Sequence[int]) -> None:
        """Begin to fetch chapters that will be asked for; as many as there is room for.

        Args:
            chapters: which.
        """
        with self._changed:
            wanted = set(chapters)
            missing = [each for each in dict.fromkeys(chapters) if each not in self._places]
            for each in wanted & set(self._places):
                self._places.move_to_end(each)
            moves = self._give_places(missing[: self._room(keep=wanted)], keep=wanted, ahead=True)
            if not moves:
                return
            self._coming |= {chapter for chapter, _ in moves}
            self.traffic.fetched_ahead += len(moves)
            if self._worker is None:
                self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memtx-fetch")
            self._worker.submit(self._bring, moves, self._order.last_read())

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._coming)

    def _room(self, *, keep: set[int]) -> int:
        """Count the places that can be given without taking away what is to be kept."""
        return len(self._free) + sum(
            each not in keep and each not in self._coming for each in self._places
        )

    def _can_hold(self, wanted: set[int]) -> bool:
        if wanted & self._coming:
            return False
        missing = wanted - self._places.keys()
        return not missing or self._room(keep=wanted) >= len(missing)

    def _give_places(self, chapters: list[int], *, keep: set[int], ahead: bool) -> _Moves:
        """Give each chapter a place: a free one, or that of the chapter read longest ago."""
        moves: _Moves = []
        going = (each for each in list(self._places) if each not in keep | self._coming)
        for chapter in chapters:
            if self._free:
                place = self._free.pop()
            else:
                leaving = next(going)
                place = self._places.pop(leaving)
                done = self._done.pop(leaving, None)
                if not ahead:  # the side stream keeps its own order
                    self._order.wait_for([done])
            self._places[chapter] = place
            moves.append((chapter, place))
        return moves

    def _forget(self, moves: _Moves) -> None:
        for chapter, place in moves:
            self._places.pop(chapter, None)
            self._free.append(place)

    def _bring(self, moves: _Moves, last_read: Any) -> None:
        """Copy chapters on the side stream: what the worker does."""
        try:
            with self._order.aside(last_read):
                self._copy(moves)
                done = self._order.mark()
        except BaseException:
            # Who asks for the chapters fetches them again, and is told what is wrong.
            with self._changed:
                self._coming -= {chapter for chapter, _ in moves}
                self._forget(moves)
                self._changed.notify_all()
            raise
        with self._changed:
            self._coming -= {chapter for chapter, _ in moves}
            if done is not None:
                self._done |= {chapter: done for chapter, _ in moves}
            self._changed.notify_all()

    @torch.no_grad()
    def _copy(self, moves: _Moves) -> None:
        """Copy chapters from the host to their places, on the current stream."""
        moved = 0
        for name, rows in self.chapters.items():
            in_file = is_mapped(rows)
            for chapter, _ in moves if in_file else ():
                will_need(rows[chapter])
            for chapter, place in moves:
                there = rows[chapter]
                here = there
                if in_file and self.device.type == "cuda":
                    # Pages of a file cannot be pinned; torch reuses this once the copy is done.
                    here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
                    here.copy_(there)
                self._store[name][place].copy_(here, non_blocking=True)
                if in_file:
                    release(there)
                moved += there.nbytes
        with self._changed:
            self.traffic.bytes_moved += moved
