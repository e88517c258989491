"""What banks have in common whose rows lie elsewhere than where they are read."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from memtx.interfaces import MemoryBank
from memtx.memory.offloaded_cache import ChapterCache
from memtx.memory.offloaded_reads import (
    Residents,
    asked_of,
    read,
    read_whole,
    require_numbers,
    require_resident,
)
from memtx.memory.offloaded_rows import RowLayout, Store, check_chapters, row_layout, row_tensors


@final
class DistantRows:
    """The rows of a bank, read chapter by chapter through those that were read last.

    Args:
        owner: the name of the class that holds it, for messages.
        stored: the bank inside, whose tensors hold the rows.
        tokens_per_chapter: memory tokens that are fetched together.
        num_resident_chapters: how many chapters are kept on a device that reads.

    Raises:
        ValueError: if chapters do not divide the bank, or it is of a kind that is not known.

    Source: memtx's own.

    Example:
        >>> from memtx import Normal, StandardMemoryBank
        >>> bank = StandardMemoryBank(num_memory_tokens=8, dim=2, init=Normal(std=1.0))
        >>> rows = DistantRows(
        ...     owner="bank", stored=bank, tokens_per_chapter=4, num_resident_chapters=1)
        >>> torch.equal(rows.read(torch.tensor([7, 0])), bank()[[7, 0]])
        True
    """

    def __init__(
        self,
        *,
        owner: str,
        stored: MemoryBank,
        tokens_per_chapter: int,
        num_resident_chapters: int,
    ) -> None:
        self.layout: RowLayout = row_layout(stored, owner=owner)
        check_chapters(
            owner=owner,
            bank=stored,
            tokens_per_chapter=tokens_per_chapter,
            num_resident_chapters=num_resident_chapters,
        )
        self.owner = owner
        self.stored = stored
        self.tokens_per_chapter = tokens_per_chapter
        self.num_resident_chapters = num_resident_chapters
        self.residents = Residents(num_places=num_resident_chapters)

    @property
    def tensors(self) -> Store:
        """The tensors that hold the rows, by name."""
        return row_tensors(self.stored, layout=self.layout)

    def all(self, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Give all memory tokens, where all chapters have room.

        Args:
            rows: gives some of them.

        Raises:
            ValueError: if there are more chapters than places.
        """
        count = self.stored.num_memory_tokens
        require_resident(
            owner=self.owner,
            num_chapters=count // self.tokens_per_chapter,
            num_places=self.num_resident_chapters,
        )
        return rows(torch.arange(count))

    def read(self, indices: Tensor) -> Tensor:
        """Give memory tokens, through what is kept on the device of their indices.

        Args:
            indices: which memory tokens, in any shape.
        """
        asked = asked_of(
            indices,
            num_rows=self.stored.num_memory_tokens,
            size=self.tokens_per_chapter,
            owner=self.owner,
        )
        return read(asked, cache=self._cache(indices.device), layout=self.layout)

    def whole(self, numbers: Tensor, size: int) -> Tensor | None:
        """Give chapters at once where that can be done: its own ones, few enough, not in a trace.

        Args:
            numbers: of the chapters.
            size: memory tokens of a chapter.
        """
        if size != self.tokens_per_chapter or torch.compiler.is_compiling():
            return None
        return read_whole(numbers, cache=self._cache(numbers.device), layout=self.layout)

    def fetch_ahead(self, indices: Tensor) -> None:
        """Begin to fetch the chapters of memory tokens that will be read, if they are not there.

        Args:
            indices: which memory tokens, on the device that will read them.
        """
        asked = asked_of(
            indices,
            num_rows=self.stored.num_memory_tokens,
            size=self.tokens_per_chapter,
            owner=self.owner,
        )
        self._cache(indices.device).fetch_ahead(asked.distinct)

    def _cache(self, device: torch.device) -> ChapterCache:
        rows = self.tensors
        require_numbers(rows, owner=self.owner)
        return self.residents.on(
            device, rows=rows, entries=self.layout.entries(self.tokens_per_chapter)
        )


def outside_traces(rows: Callable[[Tensor], Tensor], indices: Tensor) -> Tensor:
    """Read rows; a trace of `torch.compile` breaks there, as a read waits for the host.

    Args:
        rows: gives the memory tokens at indices.
        indices: which.
    """
    if torch.compiler.is_compiling():
        apart: Callable[[Tensor], Tensor] = torch.compiler.disable(rows)
        return apart(indices)
    return rows(indices)


def of_chapters(rows: Callable[[Tensor], Tensor], numbers: Tensor, size: int) -> Tensor:
    """Give whole chapters by their rows, `[chapters, size, dim]`.

    Args:
        rows: gives the memory tokens at indices.
        numbers: of the chapters.
        size: memory tokens of a chapter.
    """
    return rows(numbers[:, None] * size + torch.arange(size, device=numbers.device))
