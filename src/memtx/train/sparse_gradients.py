"""Banks whose gradient is as small as what was read of them."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor, nn

from memtx.checks import require
from memtx.memory.cross_attention import MemoryCrossAttention
from memtx.memory.routed_attention import RoutedMemoryCrossAttention
from memtx.memory.sparse import SparseRows


@final
class SparseBankGradients:
    """Banks whose gradient is a sparse tensor of the rows that were read, while this is in force.

    A dense gradient has a number for each of the bank's, read or not: 3 GiB for 1,048,576 tokens of
    width 768, to be zeroed, added up and read by the optimizer in every step. A sparse one has as
    many rows as chapters were read. The numbers are the same. `BankRows` learns from it; torch's
    `AdamW` refuses it. Make it with `sparse_bank_gradients`, and end it with `stop`, or use it in a
    `with` block.

    Args:
        readers: the routed reads.
        banks: the banks they read.

    Source: torch's sparse embeddings.

    Example:
        >>> SparseBankGradients.__name__  # made by sparse_bank_gradients
        'SparseBankGradients'
    """

    def __init__(
        self, *, readers: Sequence[RoutedMemoryCrossAttention], banks: Sequence[nn.Module]
    ) -> None:
        self.readers = readers
        self.banks = banks

    def stop(self) -> None:
        """Give banks dense gradients again."""
        for reader in self.readers:
            reader.sparse_rows = None

    def __enter__(self) -> "SparseBankGradients":
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()


def sparse_bank_gradients(model: nn.Module) -> SparseBankGradients:
    """Let the banks of a model that only routed readers read have sparse gradients.

    For training in one process: neither DDP nor FSDP takes sparse gradients. Call it when the model
    is where it trains.

    Args:
        model: a model with routed reads.

    Raises:
        ValueError: if there is no routed read, a dense read shares a bank, or a bank has no
            parameter with a row for each memory token.
    """
    parts = list(model.modules())
    readers = [part for part in parts if isinstance(part, RoutedMemoryCrossAttention)]
    dense = {id(part.bank) for part in parts if isinstance(part, MemoryCrossAttention)}
    banks: dict[int, Any] = {id(reader.bank): reader.bank for reader in readers}
    require(
        ok=bool(readers) and not dense & set(banks),
        owner="sparse_bank_gradients",
        rule="the model must have routed reads, and none of their banks be read whole",
        got={"routed reads": len(readers), "banks read whole": len(dense & set(banks))},
        remedy="give dense reads a bank of their own",
    )
    found = [SparseRows(bank=reader.bank) for reader in readers]
    for reader, rows in zip(readers, found, strict=True):
        reader.sparse_rows = rows
    return SparseBankGradients(readers=readers, banks=list(banks.values()))


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradient down to a norm of at most `max_norm`; give its norm as it was.

    Sparse gradients are coalesced, and count as if they were dense: torch's own clipping refuses
    them.

    Args:
        parameters: those with a gradient count.
        max_norm: `math.inf` scales nothing.
    """
    given = [parameter for parameter in parameters if parameter.grad is not None]
    dense: list[Tensor] = []
    values: list[Tensor] = []
    for parameter in given:
        gradient: Any = parameter.grad
        if gradient.is_sparse:
            parameter.grad = gradient.coalesce()
            values.append(parameter.grad.values())
        else:
            dense.append(parameter)
    if not values:
        return nn.utils.clip_grad_norm_(given, max_norm)
    gradients = [each.grad for each in dense if each.grad is not None]
    norm = nn.utils.get_total_norm([*gradients, *values])
    nn.utils.clip_grads_with_norm_(dense, max_norm, norm)
    share = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for each in values:
        each.mul_(share.to(each.device))
    return norm
