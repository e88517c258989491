"""What all memories in one base share: what was frozen for them, and the layers of a cache."""

from typing import Any, final

from torch import nn

from memtx.adapters.families import inner_model, is_peft
from memtx.adapters.quantized import allow_packing, prevent_packing

_NAME = "_memtx_tenancy"
_NO_SLOT = -1


@final
class Tenancy:
    """A book kept at a base from the first memory that goes into it to the last that leaves it.

    The base is frozen while it is kept. A copy of the base has a copy of it.

    Args:
        base: the model (or a PEFT model of it); use `enter`, which finds the one there is.

    Source: memtx's own.

    Example:
        >>> Tenancy.__name__  # kept by MemoryAdapter and MemoryLibrary
        'Tenancy'
    """

    def __init__(self, *, base: nn.Module) -> None:
        self.base = base
        self.guests = 0
        self.frozen: list[nn.Parameter] = []
        self.unpacked: list[nn.Module] = []
        self.slots: dict[int, int] = {}

    @classmethod
    def enter(cls, base: nn.Module) -> "Tenancy":
        """Come into a base, and freeze what of it is not.

        Args:
            base: the model; the trainable parameters of a PEFT model stay trainable.
        """
        model = inner_model(base)
        book: Tenancy | None = vars(model).get(_NAME)
        if book is None:
            book = cls(base=model)
            vars(model)[_NAME] = book
        book.guests += 1
        trained = [] if is_peft(base) else [p for p in base.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        book.frozen += trained
        book.unpacked += prevent_packing(base)
        return book

    def leave(self) -> None:
        """Go; the last one to go leaves the base as it was before the first."""
        self.guests -= 1
        if self.guests > 0:
            return
        while self.frozen:
            self.frozen.pop().requires_grad_(True)
        allow_packing(self.unpacked)
        del vars(self.base)[_NAME]

    def reserve(self, count: int) -> int:
        """Give the number of the first of so many cache layers that nobody else uses.

        They lie behind those of the base, in the first gap that is wide enough.

        Args:
            count: how many; none have no number, and nobody else's are freed with them.
        """
        if not count:
            return _NO_SLOT
        model: Any = self.base
        first = int(model.get_decoder().config.num_hidden_layers)
        for start in sorted(self.slots):
            if start - first >= count:
                break
            first = start + self.slots[start]
        self.slots[first] = count
        return first

    def release(self, first: int) -> None:
        """Let others use cache layers that were reserved.

        Args:
            first: what `reserve` gave.
        """
        self.slots.pop(first, None)
