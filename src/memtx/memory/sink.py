"""A bank with empty slots, which a query can choose to read nothing."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require, require_positive
from memtx.expression import component
from memtx.interfaces import MemoryBank
from memtx.memory.owned import is_distant


@final
@component
class SinkMemoryBank(nn.Module):
    """A bank behind `num_sinks` empty memory tokens: zeros that are never learned.

    Attention weights sum to 1, so without a sink every position of every text reads something. An
    empty token read through projections without bias has a key and a value of zeros: its score is
    0 whatever the query, and it adds nothing. A query whose scores for all other tokens are low
    reads nothing; `num_sinks` says how low, since all sinks together weigh as much as one token of
    score `log(num_sinks)`. Queries and keys learn the rest.

    The empty tokens come first. With as many of them as a chapter has tokens they are chapter 0:
    of routed readers a shared one (`num_shared_chapters=1`), and in a recording of what was read
    the share of chapter 0 is the share of nothing.

    Args:
        num_sinks: how many empty memory tokens there are.
        stored: the bank of the others.

    Shapes:
        `bank()` gives `[num_sinks + stored.num_memory_tokens, dim]`.

    Raises:
        ValueError: if `num_sinks` is below 1, or the rows of `stored` lie elsewhere than where they
            are read.

    Source: "attention is off by one" and attention sinks (Xiao et al. 2023, arXiv 2309.17453), as
    tokens of a bank: readers, kernels and recordings need not know of them.

    Example:
        >>> from memtx import Normal, SinkMemoryBank, StandardMemoryBank
        >>> bank = SinkMemoryBank(num_sinks=1, stored=StandardMemoryBank(
        ...     num_memory_tokens=2, dim=3, init=Normal(std=1.0)))
        >>> bank().shape, bank()[0].tolist()
        (torch.Size([3, 3]), [0.0, 0.0, 0.0])
    """

    def __init__(self, *, num_sinks: int, stored: MemoryBank) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"num_sinks": num_sinks})
        require(
            ok=not is_distant(stored),
            owner=self,
            rule="stored must be a bank whose tokens lie where they are read",
            got={"stored": type(stored).__name__},
            remedy="use a StandardMemoryBank, FactorizedMemoryBank or ReducedDimMemoryBank",
        )
        self.num_sinks = num_sinks
        self.stored = stored

    @property
    def num_memory_tokens(self) -> int:
        """How many memory tokens there are, the empty ones among them."""
        return self.num_sinks + self.stored.num_memory_tokens

    @property
    def dim(self) -> int:
        """Their width."""
        return self.stored.dim

    def forward(self) -> Float[Tensor, "num_memory_tokens dim"]:
        """Give all memory tokens, the empty ones first."""
        tokens = self.stored()
        return torch.cat([tokens.new_zeros(self.num_sinks, self.dim), tokens])

    def rows(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        """Give the memory tokens at `indices`.

        Args:
            indices: which memory tokens, in any shape.
        """
        learned = indices - self.num_sinks
        found = self.stored.rows(learned.clamp(min=0))
        return found.masked_fill((learned < 0)[..., None], 0.0)
