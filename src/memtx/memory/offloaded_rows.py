"""How the rows of a bank lie in its tensors, and how memory tokens are made of some of them."""

from typing import Protocol, final, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from memtx.checks import require, require_positive
from memtx.interfaces import MemoryBank
from memtx.memory.bank import StandardMemoryBank
from memtx.memory.low_rank import FactorizedMemoryBank, ReducedDimMemoryBank
from memtx.memory.quantized import QuantizedMemoryBank

# By name, chapters of rows as they are kept: `[places, entries of a chapter, ...]`.
Store = dict[str, Tensor]


@runtime_checkable
class RowLayout(Protocol):
    """Which tensors of a bank hold its rows, and what is made of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors whose first axis runs along the rows."""

    @property
    def width(self) -> int:
        """How many numbers a row has before the last step."""

    def entries(self, tokens: int) -> int:
        """Give how long the first axis is for so many consecutive tokens."""

    def values(self, store: Store, places: Tensor, which: Tensor, within: Tensor) -> Tensor:
        """Give rows `[rows, width]` of chapters that lie at `places` of a store.

        Each row is in chapter `which` (a place on `places`) at `within`; all three are on the host.
        """

    def whole(self, store: Store, places: Tensor) -> Tensor:
        """Give all rows `[chapters, rows, width]` of chapters at places, a tensor on the device."""

    def tokens(self, values: Tensor) -> Tensor:
        """Make memory tokens of rows `[..., width]`."""


@final
class PlainRows:
    """Rows that are the memory tokens, or coordinates that a product makes them of.

    Args:
        bank: the bank.

    Source: memtx's own.

    Example:
        >>> from memtx.initialize import Zeros
        >>> bank = StandardMemoryBank(num_memory_tokens=4, dim=3, init=Zeros())
        >>> PlainRows(bank=bank).names
        ('tokens',)
    """

    def __init__(
        self, *, bank: StandardMemoryBank | ReducedDimMemoryBank | FactorizedMemoryBank
    ) -> None:
        self.bank = bank

    @property
    def names(self) -> tuple[str, ...]:
        """The one tensor."""
        return ("coordinates",) if isinstance(self.bank, FactorizedMemoryBank) else ("tokens",)

    @property
    def width(self) -> int:
        """The rank of a factorized bank, the width of any other."""
        return self.bank.rank if isinstance(self.bank, FactorizedMemoryBank) else self.bank.dim

    def entries(self, tokens: int) -> int:
        """A row is an entry.

        Args:
            tokens: how many.
        """
        return tokens

    def values(self, store: Store, places: Tensor, which: Tensor, within: Tensor) -> Tensor:
        """Look the rows up.

        Args:
            store: the chapters that are here.
            places: where those that are asked for lie.
            which: each row's chapter among these.
            within: its place in the chapter.
        """
        (kept,) = store.values()
        rows = places[which] * kept.shape[1] + within
        return kept.flatten(0, 1)[rows.to(kept.device, non_blocking=True)]

    def whole(self, store: Store, places: Tensor) -> Tensor:
        """Look the chapters up.

        Args:
            store: the chapters that are here.
            places: where those that are asked for lie.
        """
        (kept,) = store.values()
        return kept[places]

    def tokens(self, values: Tensor) -> Tensor:
        """Take the product, of a factorized bank.

        Args:
            values: the rows.
        """
        if isinstance(self.bank, FactorizedMemoryBank):
            return F.linear(values, self.bank.directions.to(values.device, values.dtype))
        return values


@final
class BlockRows:
    """Rows as blocks of 8-bit or 4-bit numbers, each with its scale.

    Args:
        bank: the bank.

    Source: memtx's own.

    Example:
        >>> bank = QuantizedMemoryBank(num_memory_tokens=4, dim=32, bits=8, block_size=64)
        >>> BlockRows(bank=bank).entries(2)
        1
    """

    def __init__(self, *, bank: QuantizedMemoryBank) -> None:
        self.bank = bank

    @property
    def names(self) -> tuple[str, ...]:
        """Codes and scales."""
        return ("codes", "scales")

    @property
    def width(self) -> int:
        """The bank's."""
        return self.bank.dim

    def entries(self, tokens: int) -> int:
        """Count blocks.

        Args:
            tokens: how many; they end where a block ends, or where the bank does.
        """
        return -(-tokens * self.bank.dim // self.bank.block_size)

    def values(self, store: Store, places: Tensor, which: Tensor, within: Tensor) -> Tensor:
        """Dequantize the chapters that are asked for, and look the rows up.

        Args:
            store: the chapters that are here.
            places: where those that are asked for lie.
            which: each row's chapter among these.
            within: its place in the chapter.
        """
        numbers = self.whole(store, places.to(store["codes"].device, non_blocking=True))
        rows = which * numbers.shape[1] + within
        return numbers.flatten(0, 1)[rows.to(numbers.device, non_blocking=True)]

    def whole(self, store: Store, places: Tensor) -> Tensor:
        """Dequantize the chapters.

        Args:
            store: the chapters that are here.
            places: where those that are asked for lie.
        """
        codes, scales = store["codes"][places], store["scales"][places]
        numbers = self.bank.dequantize(codes.flatten(0, 1), scales.flatten(0, 1))
        tokens = codes.shape[1] * self.bank.block_size // self.bank.dim
        return numbers.view(codes.shape[0], tokens, self.bank.dim)

    def tokens(self, values: Tensor) -> Tensor:
        """Rows are tokens.

        Args:
            values: the rows.
        """
        return values


def row_layout(bank: MemoryBank, *, owner: object) -> RowLayout:
    """Give the layout of a bank's rows.

    Args:
        bank: the bank.
        owner: who keeps its rows elsewhere.

    Raises:
        ValueError: if it is of no kind whose rows can be kept elsewhere.
    """
    if isinstance(bank, QuantizedMemoryBank):
        return BlockRows(bank=bank)
    require(
        ok=isinstance(bank, StandardMemoryBank | ReducedDimMemoryBank | FactorizedMemoryBank),
        owner=owner,
        rule="stored must be a StandardMemoryBank, ReducedDimMemoryBank, FactorizedMemoryBank or "
        "QuantizedMemoryBank",
        got={"stored": type(bank).__name__},
        remedy="pass the bank itself, not one that is kept elsewhere already",
    )
    return PlainRows(bank=bank)  # type: ignore[arg-type]


def check_chapters(
    *, owner: object, bank: MemoryBank, tokens_per_chapter: int, num_resident_chapters: int
) -> None:
    """Refuse chapters that a bank does not divide into.

    Args:
        owner: who keeps the rows elsewhere.
        bank: the bank.
        tokens_per_chapter: memory tokens that are fetched together.
        num_resident_chapters: how many chapters are kept where they are read.

    Raises:
        ValueError: if a size is below 1, chapters do not divide the bank, or blocks a chapter.
    """
    require_positive(
        owner=owner,
        sizes={
            "tokens_per_chapter": tokens_per_chapter,
            "num_resident_chapters": num_resident_chapters,
        },
    )
    require(
        ok=bank.num_memory_tokens % tokens_per_chapter == 0,
        owner=owner,
        rule="the memory tokens must divide into chapters of equal size",
        got={
            "num_memory_tokens": bank.num_memory_tokens,
            "tokens_per_chapter": tokens_per_chapter,
        },
        remedy="pass the chapters' size of the routers that read it",
    )
    if isinstance(bank, QuantizedMemoryBank):
        require(
            ok=tokens_per_chapter * bank.dim % bank.block_size == 0,
            owner=owner,
            rule="the blocks of a quantized bank must divide a chapter",
            got={
                "tokens_per_chapter": tokens_per_chapter,
                "dim": bank.dim,
                "block_size": bank.block_size,
            },
            remedy="quantize with smaller blocks, or make chapters larger",
        )


def row_tensors(bank: MemoryBank, *, layout: RowLayout) -> Store:
    """Give the tensors that hold a bank's rows.

    Args:
        bank: the bank.
        layout: their layout.
    """
    held: dict[str, Tensor] = {name: getattr(bank, name) for name in layout.names}
    return held


def as_chapters(tensors: Store, *, entries: int) -> Store:
    """Cut rows into chapters, `[chapters, entries, ...]`; nothing is copied.

    Args:
        tensors: by name.
        entries: how long the first axis is for a chapter.
    """
    return {name: each.detach().unflatten(0, (-1, entries)) for name, each in tensors.items()}
