"""Projections whose heads have a length: the usual one, or one that is said and learned."""

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memtx.checks import require, require_positive
from memtx.expression import component
from memtx.interfaces import Projection


def _check_width(owner: object, *, projection: Projection, num_heads: int) -> None:
    require_positive(owner=owner, sizes={"num_heads": num_heads})
    require(
        ok=projection.out_features % num_heads == 0,
        owner=owner,
        rule="projection.out_features must be a multiple of num_heads",
        got={"projection.out_features": projection.out_features, "num_heads": num_heads},
        remedy="give it the heads of the attention that it is for",
    )


def _check_positive(owner: object, *, name: str, value: float, usual: str) -> None:
    require(
        ok=0.0 < value < math.inf,
        owner=owner,
        rule=f"{name} must be positive and finite",
        got={name: value},
        remedy=usual,
    )


@final
@component
class UnitHeads(nn.Module):
    """A projection whose heads are scaled to length 1, so that a score is a cosine.

    Given as `q_proj` and `k_proj` of a reader, scores depend on directions alone: no memory token
    is read more because its key is long. A memory token of zeros stays one. Lengths are taken in
    float32.

    Args:
        projection: makes the heads.
        num_heads: how many; the attention's own number of query or key heads.
        eps: heads shorter than this are divided by it.

    Shapes:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: if the heads do not divide the projection's width, or `eps` is not positive.

    Source: query-key normalisation (Henry et al. 2020, arXiv 2010.04245), as a part of its own.

    Example:
        >>> import torch
        >>> from memtx import Linear, Normal, UnitHeads
        >>> unit = UnitHeads(
        ...     projection=Linear(in_features=4, out_features=6, bias=False, init=Normal(std=1.0)),
        ...     num_heads=2, eps=1e-6)
        >>> unit(torch.ones(4)).unflatten(-1, (2, 3)).norm(dim=-1).round(decimals=4).tolist()
        [1.0, 1.0]
    """

    def __init__(self, *, projection: Projection, num_heads: int, eps: float) -> None:
        super().__init__()
        _check_width(self, projection=projection, num_heads=num_heads)
        _check_positive(self, name="eps", value=eps, usual="1e-6 is usual")
        self.projection = projection
        self.num_heads = num_heads
        self.eps = eps

    @property
    def in_features(self) -> int:
        """Width of what it maps."""
        return self.projection.in_features

    @property
    def out_features(self) -> int:
        """Width of what it gives."""
        return self.projection.out_features

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """Map the last axis."""
        return unit_heads(self.projection(x), num_heads=self.num_heads, eps=self.eps)


@final
@component
class ScaledHeads(nn.Module):
    """A projection whose heads are multiplied by a learned number each, which starts at `scale`.

    Given as `q_proj` of a reader, it says how sharply the memory is read: an attention divides its
    scores by the root of the heads' width, so over `UnitHeads` of width `e` a scale of
    `s * e**0.5` gives scores from `-s` to `s`, and over a plain projection a scale of 4.0 gives
    scores four times larger. The logarithm is learned, so that the factor stays positive and a
    step changes it by a share of itself.

    Args:
        projection: makes the heads.
        num_heads: how many.
        scale: where the factor of every head starts.

    Shapes:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        ValueError: if the heads do not divide the projection's width, or `scale` is not positive.

    Source: the learned temperature of CLIP (Radford et al. 2021, arXiv 2103.00020), for each head.

    Example:
        >>> import torch
        >>> from memtx import FromRows, Linear, ScaledHeads
        >>> same = Linear(in_features=2, out_features=2, bias=False,
        ...               init=FromRows(tensor=torch.eye(2)))
        >>> ScaledHeads(projection=same, num_heads=1, scale=4.0)(torch.ones(2)).tolist()
        [4.0, 4.0]
    """

    def __init__(self, *, projection: Projection, num_heads: int, scale: float) -> None:
        super().__init__()
        _check_width(self, projection=projection, num_heads=num_heads)
        _check_positive(self, name="scale", value=scale, usual="4.0 reads four times as sharply")
        self.projection = projection
        self.num_heads = num_heads
        self.scale = scale
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(scale)))

    @property
    def in_features(self) -> int:
        """Width of what it maps."""
        return self.projection.in_features

    @property
    def out_features(self) -> int:
        """Width of what it gives."""
        return self.projection.out_features

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """Map the last axis."""
        return scaled_heads(self.projection(x), self.log_scale)


def unit_heads(x: Tensor, *, num_heads: int, eps: float) -> Tensor:
    """Scale the heads of the last axis to length 1.

    Args:
        x: heads side by side.
        num_heads: how many.
        eps: heads shorter than this are divided by it.
    """
    heads = x.unflatten(-1, (num_heads, -1))
    return F.normalize(heads.float(), dim=-1, eps=eps).to(x.dtype).flatten(-2)


def scaled_heads(x: Tensor, log_scale: Tensor) -> Tensor:
    """Multiply the heads of the last axis by a factor each.

    Args:
        x: heads side by side.
        log_scale: the logarithms of the factors, `[..., num_heads]`.
    """
    heads = x.unflatten(-1, (log_scale.shape[-1], -1))
    scaled: Tensor = (heads * log_scale.exp().to(x.dtype)[..., None]).flatten(-2)
    return scaled
