"""Sub-layers and how they stand in the residual stream."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from memtx.checks import require
from memtx.expression import component
from memtx.interfaces import Sublayer


@final
@component
class Residual(nn.Module):
    """A sub-layer on a normalised residual stream: `x + sublayer(norm(x))`.

    Args:
        norm: normalises the stream for the sub-layer.
        sublayer: reads the normalised stream and gives what is added to it.

    Shapes:
        `[batch, length, dim]` to `[batch, length, dim]`.

    Raises:
        ValueError: if norm and sub-layer differ in width.

    Source: pre-norm residual branches (Xiong et al. 2020, arXiv 2002.04745).

    Example:
        >>> import torch
        >>> from memtx import Linear, Normal, Residual, RMSNorm, SwiGLU, Zeros
        >>> def linear() -> Linear:
        ...     return Linear(in_features=4, out_features=4, bias=False, init=Normal(std=0.02))
        >>> zero = Linear(in_features=4, out_features=4, bias=False, init=Zeros())
        >>> think = Residual(
        ...     norm=RMSNorm(dim=4, eps=1e-5),
        ...     sublayer=SwiGLU(gate_proj=linear(), up_proj=linear(), down_proj=zero))
        >>> think(torch.ones(1, 2, 4)).tolist()
        [[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]
    """

    def __init__(self, *, norm: Sublayer, sublayer: Sublayer) -> None:
        super().__init__()
        require(
            ok=norm.dim == sublayer.dim,
            owner=self,
            rule="norm and sublayer must have the width of the stream",
            got={"norm.dim": norm.dim, "sublayer.dim": sublayer.dim},
            remedy="give both the same width",
        )
        self.norm = norm
        self.sublayer = sublayer

    @property
    def dim(self) -> int:
        """Width of the stream."""
        return self.norm.dim

    def branch(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Give what the sub-layer adds to the stream.

        Args:
            x: the stream.
        """
        return self.sublayer(self.norm(x))

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Add the sub-layer's output to the stream.

        Args:
            x: the stream.
        """
        return x + self.branch(x)
