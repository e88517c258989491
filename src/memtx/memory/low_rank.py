"""Banks that keep their memory tokens in fewer numbers."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require, require_positive
from memtx.expression import component
from memtx.interfaces import Initializer


@final
@component
class FactorizedMemoryBank(nn.Module):
    """Memory tokens as the product of two narrow matrices, `A B^T`.

    A memory token is a row of `coordinates` (`A`) along the `rank` columns of `directions` (`B`).
    `init` fills `coordinates`. `directions` starts with rows of independent normal values scaled to
    length 1, so the tokens come out with the standard deviation that `init` names, whatever the
    rank, and a start at zero still has a gradient.

    Args:
        num_memory_tokens: how many memory tokens there are.
        dim: their width.
        rank: how many directions they are made of.
        init: fills the coordinates, `[num_memory_tokens, rank]`.

    Shapes:
        `bank()` gives `[num_memory_tokens, dim]`.

    Raises:
        ValueError: if a size is below 1, or if the rank exceeds the smaller of the other two.

    Source: the factorized bank of the mixture-of-chapters source, with a start of the named spread
    in place of one for each factor.

    Example:
        >>> from memtx import FactorizedMemoryBank, Normal
        >>> bank = FactorizedMemoryBank(num_memory_tokens=8, dim=4, rank=2, init=Normal(std=0.02))
        >>> bank().shape
        torch.Size([8, 4])
    """

    def __init__(self, *, num_memory_tokens: int, dim: int, rank: int, init: Initializer) -> None:
        super().__init__()
        sizes = {"num_memory_tokens": num_memory_tokens, "dim": dim, "rank": rank}
        require_positive(owner=self, sizes=sizes)
        require(
            ok=rank <= min(num_memory_tokens, dim),
            owner=self,
            rule="rank must not exceed the smaller of num_memory_tokens and dim",
            got={"rank": rank, "num_memory_tokens": num_memory_tokens, "dim": dim},
            remedy="use StandardMemoryBank for tokens of full rank",
        )
        self.num_memory_tokens = num_memory_tokens
        self.dim = dim
        self.rank = rank
        self.init = init
        self.coordinates = nn.Parameter(torch.empty(num_memory_tokens, rank))
        self.directions = nn.Parameter(F.normalize(torch.randn(dim, rank), dim=-1))
        init(self.coordinates)

    def forward(self) -> Float[Tensor, "num_memory_tokens dim"]:
        """Give all memory tokens."""
        return F.linear(self.coordinates, self.directions)

    def rows(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        """Give the memory tokens at `indices`; the others are not made.

        Args:
            indices: which memory tokens, in any shape.
        """
        return F.linear(self.coordinates[indices], self.directions)


@final
@component
class ReducedDimMemoryBank(nn.Module):
    """Memory tokens narrower than the stream, read in their own `rank` dimensions.

    `dim` is `rank`. The reader makes the widths meet: `q_proj` maps the stream to `rank`, `k_proj`
    and `v_proj` map `rank` to `rank`, and `o_proj` maps `rank` back to the stream.

    Args:
        num_memory_tokens: how many memory tokens there are.
        rank: their width.
        init: fills the matrix.

    Shapes:
        `bank()` gives `[num_memory_tokens, rank]`.

    Raises:
        ValueError: if a size is below 1.

    Source: the reduced-dimension bank of the mixture-of-chapters source, `M` in `R^{N x r}`.

    Example:
        >>> from memtx import Normal, ReducedDimMemoryBank
        >>> ReducedDimMemoryBank(num_memory_tokens=8, rank=2, init=Normal(std=0.02)).dim
        2
    """

    def __init__(self, *, num_memory_tokens: int, rank: int, init: Initializer) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"num_memory_tokens": num_memory_tokens, "rank": rank})
        self.num_memory_tokens = num_memory_tokens
        self.rank = rank
        self.dim = rank
        self.init = init
        self.tokens = nn.Parameter(torch.empty(num_memory_tokens, rank))
        init(self.tokens)

    def forward(self) -> Float[Tensor, "num_memory_tokens rank"]:
        """Give all memory tokens."""
        return self.tokens

    def rows(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any rank"]:
        """Give the memory tokens at `indices`.

        Args:
            indices: which memory tokens, in any shape.
        """
        return self.tokens[indices]
