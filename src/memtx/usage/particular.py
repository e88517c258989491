"""Which memory tokens a text reads that other texts do not: where new knowledge may be written."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memtx.checks import require, require_positive
from memtx.memory import SinkMemoryBank
from memtx.modes import evaluating
from memtx.usage.recording import record_reads


@torch.no_grad()
def read_counts(
    model: Any, *, bank: nn.Module, rows: Sequence[list[int]], kept: int
) -> Float[Tensor, "rows memory"]:
    """Count how often each row's tokens have each memory token among those they read most.

    All readers of the bank count together. Empty tokens of a `SinkMemoryBank` are counted as well.

    Args:
        model: as of `record_reads`.
        bank: the bank.
        rows: token ids of each row; each is read by itself.
        kept: how many memory tokens count for each token and reader, those of largest weight.

    Raises:
        ValueError: if there is no row, one is empty, or the model does not read the bank.
    """
    require(
        ok=bool(rows) and all(len(row) > 0 for row in rows),
        owner="read_counts",
        rule="there must be at least one row, and a token in each",
        got={"rows": len(rows), "empty": sum(not row for row in rows)},
        remedy="pass token ids",
    )
    count = bank.num_memory_tokens
    readers = {n for n, part in model.named_modules() if getattr(part, "bank", None) is bank}
    require(
        ok=bool(readers),
        owner="read_counts",
        rule="the model must read the bank",
        got={"readers": 0},
        remedy="pass the model's own bank, such as model.banks[0]",
    )
    device = next(model.parameters()).device
    found = torch.zeros(len(rows), int(count))  # type: ignore[arg-type]
    with evaluating(model):
        for number, row in enumerate(rows):
            with record_reads(model, tokens_per_chapter=1, kept=kept, watched=[]) as recording:
                model(input_ids=torch.tensor([row], device=device))
            for passage in recording.passages:
                for name, reads in passage.reads.items():
                    if name.partition(" (call ")[0] in readers:
                        found[number] += torch.bincount(
                            reads.tokens[reads.real].flatten(), minlength=found.shape[1]
                        )
    return found


def most_particular(
    *,
    bank: nn.Module,
    new: Float[Tensor, "rows memory"],
    background: Float[Tensor, "others memory"],
    num_tokens: int,
) -> list[int]:
    """Choose the memory tokens that new text reads much and other text seldom.

    A token's score is its share of the new text's counts, times the logarithm of the number of
    background rows, plus 1, over those that read it, plus 1.

    Args:
        bank: the bank; empty tokens of a `SinkMemoryBank` are never chosen.
        new: counts of the new text, as `read_counts` gives them.
        background: counts of other text.
        num_tokens: how many to choose; fewer are given where the new text reads fewer.

    Returns:
        Numbers of memory tokens, in order.

    Raises:
        ValueError: if `num_tokens` is below 1, or counts are of several banks.

    Source: TF-IDF over memory slots, of sparse memory fine-tuning (Lin et al. 2025, arXiv
    2510.15103).

    Example:
        >>> import torch
        >>> from memtx import Normal, StandardMemoryBank
        >>> bank = StandardMemoryBank(num_memory_tokens=3, dim=4, init=Normal(std=1.0))
        >>> most_particular(
        ...     bank=bank, new=torch.tensor([[5.0, 4.0, 0.0]]),
        ...     background=torch.tensor([[9.0, 0.0, 1.0]]), num_tokens=2)
        [1]
    """
    require_positive(owner="most_particular", sizes={"num_tokens": num_tokens})
    sizes = [int(bank.num_memory_tokens), new.shape[-1], background.shape[-1]]  # type: ignore[arg-type]
    require(
        ok=len(set(sizes)) == 1,
        owner="most_particular",
        rule="both counts must be of the bank",
        got={"bank, new, background": sizes},
        remedy="count reads of one bank",
    )
    share = new.sum(dim=0) / new.sum().clamp(min=1.0)
    rare = ((background.shape[0] + 1) / ((background > 0).sum(dim=0) + 1)).log()
    score = share * rare
    if isinstance(bank, SinkMemoryBank):
        score[: bank.num_sinks] = 0.0
    best = score.topk(min(num_tokens, len(score)))
    return sorted(int(token) for token in best.indices[best.values > 0])
