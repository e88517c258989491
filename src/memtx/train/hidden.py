"""A term that is learned while some memory tokens cannot be read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from memtx.checks import require
from memtx.data.protocols import Batch
from memtx.memory import MemoryCrossAttention
from memtx.train.terms import Term


@final
@dataclass(frozen=True, kw_only=True)
class WithoutTokens:
    """Another term, of the model as if some memory tokens of a bank were not there.

    What is learned so does not rest on them: chapters that stay are known without those that are
    to go, and what is written into new chapters does not need the old ones. Hidden tokens get no
    gradient from the term; the others get theirs.

    Args:
        term: the other term; its name and weight are this one's.
        bank: the bank; only readers of whole banks may read it.
        tokens: numbers of the memory tokens that are hidden.

    Raises:
        ValueError: if a token is not there, or none or all are hidden.

    Source: memtx's own; the reading of `memtx.usage.without_chapters`, with gradients.

    Example:
        >>> from memtx import Normal, StandardMemoryBank
        >>> from memtx.train import NextTokenLoss
        >>> bank = StandardMemoryBank(num_memory_tokens=8, dim=4, init=Normal(std=1.0))
        >>> term = NextTokenLoss(name="new", stream="new", weight=1.0, chunk=1024)
        >>> WithoutTokens(term=term, bank=bank, tokens=[0, 1]).stream
        'new'
    """

    term: Term
    bank: nn.Module
    tokens: Sequence[int]

    def __post_init__(self) -> None:
        count = int(cast("Any", self.bank).num_memory_tokens)
        unknown = [each for each in self.tokens if not 0 <= each < count]
        require(
            ok=not unknown and 0 < len(set(self.tokens)) < count,
            owner=self,
            rule=f"tokens must be numbers from 0 to {count - 1}, at least one and not all",
            got={"tokens": unknown or len(set(self.tokens))},
            remedy="hide the tokens of some chapters, as tokens_of_chapters gives them",
        )

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return self.term.name

    @property
    def stream(self) -> str:
        """Name of the batch stream it reads."""
        return self.term.stream

    @property
    def weight(self) -> float:
        """Its factor in the loss."""
        return self.term.weight

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the term is not made for, or whose bank is not read whole.

        Args:
            model: the model.

        Raises:
            ValueError: if so.
        """
        self.term.check(model)
        readers = _readers(model, bank=self.bank)
        others = [
            type(part).__name__ for part in readers if not isinstance(part, MemoryCrossAttention)
        ]
        require(
            ok=bool(readers) and not others,
            owner=self,
            rule="the model must read the bank, by MemoryCrossAttention alone",
            got={"readers": len(readers), "others": others},
            remedy="pass the model's own bank; routed chapters are hidden by routing elsewhere",
        )

    def weights(self, model: nn.Module) -> dict[str, float]:
        """Give the name and the factor of each component.

        Args:
            model: the model.
        """
        return self.term.weights(model)

    def counts(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give how many things of the batch each component averages over.

        Args:
            model: the model.
            batch: as the other term takes it.
        """
        return self.term.counts(model, batch)

    def totals(self, model: Any, batch: Batch) -> Tensor:
        """Give the sums of the other term.

        Args:
            model: the model.
            batch: as the other term takes it.
        """
        with _hidden(model, bank=self.bank, tokens=self.tokens):
            return self.term.totals(model, batch)


@final
class _Rest(nn.Module):
    """Some memory tokens of a bank: their gradient is the bank's."""

    def __init__(self, *, bank: Any, kept: Tensor) -> None:
        super().__init__()
        self.bank = bank
        self.kept = kept
        self.num_memory_tokens = len(kept)
        self.dim = bank.dim

    def forward(self) -> Tensor:
        tokens: Tensor = self.bank()
        return tokens[self.kept.to(tokens.device)]

    def rows(self, indices: Tensor) -> Tensor:
        rows: Tensor = self.bank.rows(self.kept.to(indices.device)[indices])
        return rows


def _readers(model: nn.Module, *, bank: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if getattr(part, "bank", None) is bank]


@contextmanager
def _hidden(model: nn.Module, *, bank: nn.Module, tokens: Sequence[int]) -> Iterator[None]:
    """Let readers of a bank read its other tokens inside a `with` block."""
    count = int(cast("Any", bank).num_memory_tokens)
    kept = torch.ones(count, dtype=torch.bool)
    kept[list(tokens)] = False
    rest = _Rest(bank=bank, kept=kept.nonzero().flatten())
    readers = _readers(model, bank=bank)
    try:
        for reader in readers:
            reader._modules["bank"] = rest
        yield
    finally:
        for reader in readers:
            reader._modules["bank"] = bank
