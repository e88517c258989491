"""Linear maps."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memtx.checks import require, require_positive
from memtx.expression import component
from memtx.interfaces import Initializer


@final
@component
class Linear(nn.Module):
    """A linear map whose start is said, not assumed.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether to add a learned vector, which starts at zero.
        init: fills the weight.

    Shapes:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: if a size is below 1.

    Source: `torch.nn.Linear`, with the initialiser injected.

    Example:
        >>> import torch
        >>> from memtx import Linear, Zeros
        >>> Linear(in_features=4, out_features=2, bias=False, init=Zeros())(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, *, in_features: int, out_features: int, bias: bool, init: Initializer
    ) -> None:
        super().__init__()
        require_positive(
            owner=self, sizes={"in_features": in_features, "out_features": out_features}
        )
        self.in_features = in_features
        self.out_features = out_features
        self.init = init
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        # The parameter `bias` is a flag and the tensor of torch's convention bears the same
        # name; the flag keeps it (rule: parameters are attributes) and the tensor is `shift`.
        self.bias = bias
        self.shift = nn.Parameter(torch.zeros(out_features)) if bias else None
        init(self.weight)

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """Map the last axis."""
        return F.linear(x, self.weight, self.shift)


@final
@component
class LowRankLinear(nn.Module):
    """A linear map through a narrow middle: `x A^T B^T` with `rank` columns between.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        rank: width of the middle.
        init: fills both factors, `down` `[rank, in_features]` and then `up`
            `[out_features, rank]`.

    Shapes:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: if a size is below 1, or if the rank exceeds the smaller width.

    Source: low-rank projections of the mixture-of-chapters source (`use_low_rank_projections`).

    Example:
        >>> import torch
        >>> from memtx import LowRankLinear, Normal
        >>> thin = LowRankLinear(in_features=8, out_features=6, rank=2, init=Normal(std=0.02))
        >>> thin(torch.ones(3, 8)).shape
        torch.Size([3, 6])
    """

    def __init__(
        self, *, in_features: int, out_features: int, rank: int, init: Initializer
    ) -> None:
        super().__init__()
        require_positive(
            owner=self,
            sizes={"in_features": in_features, "out_features": out_features, "rank": rank},
        )
        require(
            ok=rank <= min(in_features, out_features),
            owner=self,
            rule="rank must not exceed the smaller of in_features and out_features",
            got={"rank": rank, "in_features": in_features, "out_features": out_features},
            remedy="use Linear for a map of full rank",
        )
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.init = init
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        init(self.down)
        init(self.up)

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """Map the last axis."""
        return F.linear(F.linear(x, self.down), self.up)
