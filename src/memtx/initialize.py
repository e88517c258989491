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
# Not compared by value: the comparison of two tensors is a tensor.
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class FromRows:
    """Fill with copies of given vectors, such as token embeddings or hidden states of a text.

    A spec records such a start by its shape alone: once trained, the values are those of the
    parameter. What `build` makes of it starts at zeros, and loading fills them.

    Args:
        tensor: the vectors, one to a row, of the shape of the parameter. It is kept as it is, not
            copied, and without a gradient.

    Raises:
        ValueError: if `tensor` is not a matrix of floating numbers, and on filling a parameter of
            another shape.

    Source: initialisation of soft prompts from vocabulary embeddings (Lester et al. 2021, arXiv
    2104.08691) and of caches from a text's states (Cartridges, arXiv 2506.06266).

    Example:
        >>> import torch
        >>> from memtx import FromRows, StandardMemoryBank
        >>> bank = StandardMemoryBank(
        ...     num_memory_tokens=2, dim=3, init=FromRows(tensor=torch.ones(2, 3)))
        >>> bank().tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        is_tensor = isinstance(self.tensor, Tensor)
        require(
            ok=is_tensor and self.tensor.ndim == 2 and self.tensor.is_floating_point(),
            owner=self,
            rule="tensor must be a matrix of floating numbers, one vector to a row",
            got={
                "shape": tuple(self.tensor.shape) if is_tensor else None,
                "dtype": str(self.tensor.dtype) if is_tensor else type(self.tensor).__name__,
            },
            remedy="stack the vectors into a tensor [rows, width]",
        )
        # The graph that made the vectors would be held, and could not be copied with the model.
        object.__setattr__(self, "tensor", self.tensor.detach())

    @torch.no_grad()
    def __call__(self, tensor: Tensor) -> None:
        """Fill `tensor` in place."""
        require(
            ok=tensor.shape == self.tensor.shape,
            owner=self,
            rule="the rows must have the shape of the parameter they fill",
            got={"rows": tuple(self.tensor.shape), "parameter": tuple(tensor.shape)},
            remedy="give as many rows as the parameter has, of its width",
        )
        tensor.copy_(self.tensor)


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
