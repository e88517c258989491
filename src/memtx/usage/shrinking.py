"""Banks, maps and routers with some of their rows taken out, in the numbers they had."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memtx.checks import require
from memtx.expression import arguments, class_of
from memtx.initialize import FromRows
from memtx.memory import (
    ChapterRouter,
    FactorizedMemoryBank,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    SinkMemoryBank,
    StandardMemoryBank,
)
from memtx.transformer import Linear, LowRankLinear

OWNER = "delete_chapters"
# Of each class, the tensors that have a row for each row of what it gives.
_ROWS: dict[type, tuple[str, ...]] = {
    FactorizedMemoryBank: ("coordinates",),
    Linear: ("weight", "shift"),
    LowRankLinear: ("up",),
    ReducedDimMemoryBank: ("tokens",),
    StandardMemoryBank: ("tokens",),
}


def smaller_bank(bank: Any, kept: Tensor) -> Any:
    """Give a bank of the memory tokens that are kept.

    Args:
        bank: the bank; it stays as it is.
        kept: which memory tokens, in order.

    Raises:
        ValueError: if the bank is of another kind, or so few cannot be told in its form.
    """
    if isinstance(bank, QuantizedMemoryBank):
        return _smaller_quantized(bank, kept)
    if isinstance(bank, SinkMemoryBank):
        return _smaller_behind_sinks(bank, kept)
    _require_known(bank, what="bank")
    if isinstance(bank, FactorizedMemoryBank):
        require(
            ok=len(kept) >= bank.rank,
            owner=OWNER,
            rule="a factorized bank must keep at least as many memory tokens as its rank",
            got={"kept": len(kept), "rank": bank.rank},
            remedy="delete fewer chapters",
        )
    return _with_rows(bank, kept, count="num_memory_tokens")


def smaller_router(router: ChapterRouter, kept: Sequence[int]) -> ChapterRouter:
    """Give a router to the chapters that are kept.

    Where fewer are left than it chose, it chooses all of them.

    Args:
        router: the router; it stays as it is.
        kept: which chapters, in order.

    Raises:
        ValueError: if no chapter is left to be chosen, or the scorer is of another kind.
    """
    shared = router.num_shared_chapters
    routed = [chapter - shared for chapter in kept if chapter >= shared]
    require(
        ok=bool(routed),
        owner=OWNER,
        rule="at least one chapter must be left for the router to choose",
        got={"num_chapters": router.num_chapters, "num_shared_chapters": shared, "left": kept},
        remedy="delete fewer chapters, or take the memory out",
    )
    _require_known(router.scorer, what="scorer")
    changes = {
        "num_chapters": len(kept),
        "num_shared_chapters": len(kept) - len(routed),
        "top_k": min(router.top_k, len(routed)),
        "scorer": _with_rows(router.scorer, torch.tensor(routed), count="out_features"),
    }
    given: dict[str, Any] = {**arguments(router), **changes}
    smaller = ChapterRouter(**given)
    smaller.training = router.training
    return smaller


def _require_known(part: Any, *, what: str) -> None:
    require(
        ok=type(part) in _ROWS,
        owner=OWNER,
        rule=f"the {what} must be one whose rows memtx knows",
        got={what: type(part).__name__},
        remedy=f"use one of {', '.join(sorted(each.__name__ for each in _ROWS))}",
    )


def _with_rows(part: Any, kept: Tensor, *, count: str) -> Any:
    """Give a part with some rows of its tensors, in the order given.

    `count` is the argument that says how many there are.
    """
    changes: dict[str, Any] = {count: len(kept)}
    if isinstance(part.init, FromRows):
        changes["init"] = FromRows(tensor=_rows(part.init.tensor, kept))
    smaller = _empty(part, changes)
    rows = _ROWS[type(part)]
    for name, tensor in part._parameters.items():
        if tensor is not None:
            data = _rows(tensor.detach(), kept) if name in rows else tensor.detach().clone()
            smaller._parameters[name] = nn.Parameter(data, requires_grad=tensor.requires_grad)
    return smaller


def _smaller_behind_sinks(bank: SinkMemoryBank, kept: Tensor) -> SinkMemoryBank:
    """Take memory tokens out of the bank behind the empty ones, or some of these."""
    learned = kept[kept >= bank.num_sinks]
    num_sinks = len(kept) - len(learned)
    require(
        ok=num_sinks > 0 and len(learned) > 0,
        owner=OWNER,
        rule="of a bank with sinks an empty memory token and another must be left",
        got={"sinks left": num_sinks, "others left": len(learned)},
        remedy="delete chapters behind the empty tokens, which come first",
    )
    smaller = SinkMemoryBank(
        num_sinks=num_sinks, stored=smaller_bank(bank.stored, learned - bank.num_sinks)
    )
    smaller.training = bank.training
    return smaller


def _smaller_quantized(bank: QuantizedMemoryBank, kept: Tensor) -> QuantizedMemoryBank:
    """Take whole blocks out: numbers of one block share a scale."""
    rows = bank.block_size // math.gcd(bank.dim, bank.block_size)
    groups = kept // rows
    wanted = groups.unique()
    whole = (wanted[:, None] * rows + torch.arange(rows)).flatten()
    require(
        ok=torch.equal(whole[whole < bank.num_memory_tokens], kept),
        owner=OWNER,
        rule=f"of a quantized bank whole blocks must be deleted, {rows} memory tokens each",
        got={"num_memory_tokens": bank.num_memory_tokens, "kept": len(kept)},
        remedy="delete before quantizing",
    )
    smaller: QuantizedMemoryBank = _empty(bank, {"num_memory_tokens": len(kept)})
    each = bank.dim * rows // bank.block_size
    blocks = (wanted[:, None] * each + torch.arange(each)).flatten()
    for name, tensor in bank._buffers.items():
        if tensor is not None:
            smaller._buffers[name] = _rows(tensor, blocks[blocks < tensor.shape[0]])
    return smaller


def _empty(part: Any, changes: dict[str, Any]) -> Any:
    """Give a part of other sizes whose tensors are still to be put in."""
    with torch.device("meta"):  # draws no random numbers
        smaller = class_of(part)(**{**arguments(part), **changes})
    smaller.training = part.training
    return smaller


def _rows(tensor: Tensor, kept: Tensor) -> Tensor:
    """Give a copy of some rows."""
    require(
        ok=not hasattr(tensor, "full_tensor"),
        owner=OWNER,
        rule="parameters must be whole in each process",
        got={"tensor": type(tensor).__name__},
        remedy="delete from the saved memory, loaded in one process",
    )
    return tensor[kept.to(tensor.device)].clone()
