"""Initialisers: small values that fill a parameter in place."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from memtx.checks import require
from memtx.expression import component


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class Normal:
    """Fill with independent normal values of mean zero.

    Args:
        std: the standard deviation.

    Raises:
        ValueError: if `std` is not positive.

    Source: `torch.nn.init.normal_`; the usual start of transformer weights (GPT-2: 0.02).

    Example:
        >>> import torch
        >>> weight = torch.empty(2, 3)
        >>> Normal(std=0.02)(weight)
        >>> bool(weight.abs().max() < 0.2)
        True
    """

    std: float

    def __post_init__(self) -> None:
        require(
            ok=self.std > 0.0,
            owner=self,
            rule="std must be positive",
            got={"std": self.std},
            remedy="use Zeros() for a start at zero",
        )

    @torch.no_grad()
    def __call__(self, tensor: Tensor) -> None:
        """Fill `tensor` in place."""
        tensor.normal_(0.0, self.std)


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class Zeros:
    """Fill with zeros: the start of an output projection that must change nothing at first.

    Args:
        None: it takes no arguments.

    Source: zero-initialised output projections (ReZero, ControlNet, LoRA's B).

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> Zeros()(weight)
        >>> weight.tolist()
        [0.0, 0.0]
    """

    @torch.no_grad()
    def __call__(self, tensor: Tensor) -> None:
        """Fill `tensor` in place."""
        tensor.zero_()
