"""Banks: where the memory tokens are kept."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require_positive
from memtx.expression import component
from memtx.interfaces import Initializer


@final
@component
class StandardMemoryBank(nn.Module):
    """Memory tokens as one learned matrix. One instance passed to several readers is shared.

    Args:
        num_memory_tokens: how many memory tokens there are.
        dim: their width.
        init: fills the matrix.

    Shapes:
        `bank()` gives `[num_memory_tokens, dim]`.

    Raises:
        ValueError: if a size is below 1.

    Source: the memory bank of the mixture-of-chapters source, `M` in `R^{N x d}`.

    Example:
        >>> from memtx import Normal, StandardMemoryBank
        >>> bank = StandardMemoryBank(num_memory_tokens=8, dim=4, init=Normal(std=0.02))
        >>> bank().shape
        torch.Size([8, 4])
    """

    def __init__(self, *, num_memory_tokens: int, dim: int, init: Initializer) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"num_memory_tokens": num_memory_tokens, "dim": dim})
        self.num_memory_tokens = num_memory_tokens
        self.dim = dim
        self.init = init
        self.tokens = nn.Parameter(torch.empty(num_memory_tokens, dim))
        init(self.tokens)

    def forward(self) -> Float[Tensor, "num_memory_tokens dim"]:
        """Give all memory tokens."""
        return self.tokens

    def rows(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        """Give the memory tokens at `indices`.

        Args:
            indices: which memory tokens, in any shape.
        """
        return self.tokens[indices]
