"""A memory made ready to be read many times: keys and values projected once."""

from types import TracebackType
from typing import final

from torch import nn

from memtx.checks import require
from memtx.memory.cross_attention import MemoryCrossAttention
from memtx.memory.frozen import freeze
from memtx.memory.owned import is_distant
from memtx.memory.routed_attention import RoutedMemoryCrossAttention
from memtx.memory.storage import Storage


@final
class FrozenMemory:
    """What `freeze_for_inference` did, to be undone by `thaw`, or at the end of a `with` block.

    Args:
        readers: the reads whose keys and values are kept.

    Source: memtx's own.

    Example:
        >>> FrozenMemory.__name__  # made by freeze_for_inference
        'FrozenMemory'
    """

    def __init__(self, *, readers: list[nn.Module]) -> None:
        self.readers = readers

    @property
    def nbytes(self) -> int:
        """How many bytes the kept keys and values take."""
        kept = (getattr(reader, "frozen", None) for reader in self.readers)
        return sum(each.nbytes for each in kept if each is not None)

    def thaw(self) -> None:
        """Forget keys and values: each forward projects them again. Once thawed, nothing to do."""
        for reader in self.readers:
            reader.frozen = None  # type: ignore[assignment]

    def __enter__(self) -> "FrozenMemory":
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Thaw."""
        self.thaw()


def freeze_for_inference(model: nn.Module, *, storage: Storage) -> FrozenMemory:
    """Project keys and values of every memory in a model once, for all forwards to come.

    The model answers as before, to rounding, and in generation without projecting its banks for
    each token. Nothing of it changes: parameters, `describe`, `state_dict` and `save` are as they
    were. Where a gradient would be missing a frozen memory refuses to be read, and so it does when
    its bank or projections have changed since (a compiled forward does not look).

    Args:
        model: a `MemoryTransformer`, `MemoryAdapter`, `MemoryLibrary`, its Hugging Face face, or
            any module with reads of a memory in it.
        storage: how keys and values are kept: `AsProjected()`, `InDtype(dtype=torch.bfloat16)` or
            `InEightBits()`.

    Raises:
        ValueError: if the model reads no memory, one that is frozen already, or a bank that lies
            in the host's memory or in a file.
    """
    kinds = (MemoryCrossAttention, RoutedMemoryCrossAttention)
    readers = [part for part in model.modules() if isinstance(part, kinds)]
    frozen = [part for part in readers if part.frozen is not None]
    require(
        ok=bool(readers) and not frozen,
        owner="freeze_for_inference",
        rule="the model must read at least one memory, and none that is frozen already",
        got={"reads": len(readers), "frozen": len(frozen)},
        remedy="freeze a model with memory, and thaw what was frozen before",
    )
    distant = [type(part.bank).__name__ for part in readers if is_distant(part.bank)]
    require(
        ok=not distant,
        owner="freeze_for_inference",
        rule="keys and values of all memory tokens must have room where they are read, which a "
        "bank that lies elsewhere does not promise",
        got={"banks": distant[:3]},
        remedy="read such a bank as it is: it keeps the chapters read last",
    )
    # None is set before all are made: a memory that does not fit leaves the model as it was.
    kept = [freeze(reader, storage=storage) for reader in readers]
    for reader, reads in zip(readers, kept, strict=True):
        reader.frozen = reads
    return FrozenMemory(readers=list(readers))
