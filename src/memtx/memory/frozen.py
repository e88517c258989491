"""Keys and values of a memory that were projected once, and what they were made of."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from memtx.checks import require
from memtx.interfaces import MemoryBank, Projection
from memtx.memory.owned import rows_for
from memtx.memory.storage import Kept, Storage

# Memory tokens that are projected at a time: a larger bank never stands there whole.
PIECE = 65_536

# What keys and values are made of.
_SOURCES = ("bank", "k_proj", "v_proj")


@runtime_checkable
class Reader(Protocol):
    """A read of a bank whose keys and values can be projected once."""

    bank: MemoryBank
    k_proj: Projection
    v_proj: Projection
    num_kv_heads: int
    frozen: "FrozenReads | None"


@final
class Mark:
    """A part or tensor as it stood when keys and values were made of it.

    Args:
        holder: the table that holds it.
        name: its name there.
        held: the part or tensor.

    Source: memtx's own.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> mark = Mark(holder={"weight": weight}, name="weight", held=weight)
        >>> mark.holds()
        True
        >>> _ = weight.data.add_(1.0), weight.detach().add_(1.0)
        >>> mark.holds()
        False
    """

    def __init__(self, *, holder: dict[str, Any], name: str, held: Any) -> None:
        self.holder = holder
        self.name = name
        self.held = held
        self._form = _form(held)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Mark":
        """Mark the copy as it stands: counts of changes begin anew in it."""
        from copy import deepcopy

        return Mark(
            holder=deepcopy(self.holder, memo), name=self.name, held=deepcopy(self.held, memo)
        )

    def holds(self) -> bool:
        """Tell whether it stands there still, and unchanged."""
        return self.holder.get(self.name) is self.held and _form(self.held) == self._form


def _form(held: Any) -> Any:
    """Give what changes when a tensor does: torch counts changes in place."""
    if not isinstance(held, Tensor):
        return None
    count = None if held.is_inference() else held._version
    return count, held.data_ptr(), held.dtype, held.device


def _marks(reader: nn.Module) -> Iterator[Mark]:
    for source in _SOURCES:
        part: Any = getattr(reader, source)
        yield Mark(holder=reader._modules, name=source, held=part)
        for module in part.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    yield Mark(holder=table, name=name, held=tensor)


@final
class FrozenReads:
    """Keys and values of one reader, projected once, as `freeze` makes them.

    A forward outside a compiler looks whether what they were made of is as it was.

    Args:
        key: the keys of all memory tokens.
        value: their values.
        marks: what they were made of.

    Raises:
        ValueError: when read after a change, or where a gradient would be missing.

    Source: memtx's own; what a KV cache is for the tokens of a text.

    Example:
        >>> FrozenReads.__name__  # made by memtx.generate.freeze_for_inference
        'FrozenReads'
    """

    def __init__(self, *, key: Kept, value: Kept, marks: list[Mark]) -> None:
        self.key = key
        self.value = value
        self.marks = marks
        self._learns = self._sources_learn()

    def _sources_learn(self) -> bool:
        tensors = (mark.held for mark in self.marks if isinstance(mark.held, Tensor))
        return any(tensor.requires_grad for tensor in tensors)

    @property
    def nbytes(self) -> int:
        """How many bytes keys and values take."""
        return self.key.nbytes + self.value.nbytes

    def check(self, owner: object) -> None:
        """Refuse to be read where that would be wrong.

        Args:
            owner: the reader.

        Raises:
            ValueError: if what keys and values were made of has changed, or should learn.
        """
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and (self._learns if compiling else self._sources_learn()):
            require(
                ok=False,
                owner=owner,
                rule="a frozen memory must be read without gradients: its bank and projections "
                "would learn nothing",
                got={"grad enabled": True},
                remedy="read it under torch.no_grad(), or thaw it before training",
            )
        if compiling:
            return  # a trace cannot look at each call
        changed = next((mark for mark in self.marks if not mark.holds()), None)
        if changed is not None:
            require(
                ok=False,
                owner=owner,
                rule="a frozen memory must stay as it was when it was frozen",
                got={"changed": changed.name},
                remedy="thaw it, and freeze it anew",
            )

    def all(self, owner: object) -> tuple[Tensor, Tensor]:
        """Give keys and values of all memory tokens, `[tokens, kv_heads, width]`.

        Args:
            owner: the reader.
        """
        self.check(owner)
        return self.key.all(), self.value.all()

    def chapters(
        self,
        owner: object,
        chapters: Tensor,
        size: int,
        distinct: Callable[[Tensor], tuple[Tensor | None, Tensor | None]],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give keys and values by chapter, and each choice's place among them.

        What is kept as it is read is given where it lies: nothing is looked up.

        Args:
            owner: the reader.
            chapters: the choices.
            size: tokens of a chapter.
            distinct: gives the chapters that are read, or None for all, and each choice's place,
                or None where there is one chapter for each choice.
        """
        self.check(owner)
        if self.key.is_plain:
            pair = self.key.all(), self.value.all()
            return *(each.unflatten(0, (-1, size)) for each in pair), chapters
        found, choice = distinct(chapters)
        if found is None:
            pair = self.key.all(), self.value.all()
            return *(each.unflatten(0, (-1, size)) for each in pair), choice
        return self.key.chapters(found, size), self.value.chapters(found, size), choice


@torch.no_grad()
def freeze(reader: Reader, *, storage: Storage) -> FrozenReads:
    """Project all memory tokens of a reader once; the reader is left as it is.

    Args:
        reader: the reader.
        storage: how keys and values are kept.
    """
    return FrozenReads(
        key=storage.keep(_pieces(reader, projection=reader.k_proj)),
        value=storage.keep(_pieces(reader, projection=reader.v_proj)),
        marks=list(_marks(reader)),  # type: ignore[arg-type]
    )


def _pieces(reader: Reader, *, projection: Projection) -> Iterator[Tensor]:
    count = reader.bank.num_memory_tokens
    device = _device_of(projection)
    for start in range(0, count, PIECE):
        # A whole bank is projected as a reader projects it, to the bit.
        whole = count <= PIECE
        numbers = torch.arange(start, min(start + PIECE, count), device=device)
        tokens = reader.bank().to(device) if whole else rows_for(reader.bank, numbers)
        yield projection(tokens).unflatten(-1, (reader.num_kv_heads, -1))


def _device_of(projection: Any) -> torch.device:
    found: Tensor = next(projection.parameters())
    return found.device
