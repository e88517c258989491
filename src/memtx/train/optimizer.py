"""Optimizers, as values that are made into torch's when training starts."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch

from memtx.checks import require, require_probability
from memtx.train.groups import ParameterGroup

# Where torch updates all tensors of a group in one kernel.
_FUSED = {"cpu", "cuda"}


@runtime_checkable
class Optimizer(Protocol):
    """Makes torch's optimizer of some groups."""

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make it, with one torch parameter group for each, in order."""


def _held(groups: list[ParameterGroup]) -> list[dict[str, Any]]:
    """Give torch's parameter groups."""
    return [
        {
            "params": group.parameters(),
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]


def _fused(groups: list[ParameterGroup]) -> bool:
    """Tell whether torch can update these parameters in one kernel."""
    parameters = [p for group in groups for p in group.parameters()]
    return all(p.device.type in _FUSED and p.is_floating_point() for p in parameters)


def _check_moments(optimizer: object, *, betas: tuple[float, float], eps: float) -> None:
    for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
        require_probability(owner=optimizer, name=name, value=beta)
    _check_positive(optimizer, values={"eps": eps})


def _check_positive(optimizer: object, *, values: Mapping[str, float]) -> None:
    require(
        ok=all(0.0 < value < math.inf for value in values.values()),
        owner=optimizer,
        rule=f"{', '.join(values)} must be positive and finite",
        got=values,
        remedy="1e-8 is usual",
    )


@final
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay.

    Args:
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.

    Raises:
        ValueError: if a beta is outside [0, 1) or `eps` is not positive.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), torch's implementation, all tensors in
    one kernel where torch has one: several times as fast on a CPU, and never slower.

    Example:
        >>> AdamW(betas=(0.9, 0.95), eps=1e-8).eps
        1e-08
    """

    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        _check_moments(self, betas=self.betas, eps=self.eps)

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of some groups.

        Args:
            groups: one torch parameter group is made of each, in order.
        """
        return torch.optim.AdamW(
            _held(groups), betas=self.betas, eps=self.eps, fused=_fused(groups)
        )


@final
@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, with weight decay added to the gradient, where a group has any.

    Args:
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.

    Raises:
        ValueError: if a beta is outside [0, 1) or `eps` is not positive.

    Source: Kingma and Ba 2015 (arXiv 1412.6980), torch's implementation.

    Example:
        >>> Adam(betas=(0.9, 0.999), eps=1e-8).betas
        (0.9, 0.999)
    """

    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        _check_moments(self, betas=self.betas, eps=self.eps)

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of some groups.

        Args:
            groups: one torch parameter group is made of each, in order.
        """
        return torch.optim.Adam(_held(groups), betas=self.betas, eps=self.eps, fused=_fused(groups))


@final
@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Args:
        momentum: decay of the sum of gradients; 0.0 keeps none, and no state.

    Raises:
        ValueError: if `momentum` is outside [0, 1).

    Source: Sutskever et al. 2013, torch's implementation.

    Example:
        >>> SGD(momentum=0.9).momentum
        0.9
    """

    momentum: float

    def __post_init__(self) -> None:
        require_probability(owner=self, name="momentum", value=self.momentum)

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of some groups.

        Args:
            groups: one torch parameter group is made of each, in order.
        """
        return torch.optim.SGD(_held(groups), momentum=self.momentum, fused=_fused(groups))


@final
@dataclass(frozen=True, kw_only=True)
class AdamW8bit:
    """AdamW whose moments take a byte each: a quarter of the memory.

    Args:
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        smallest: tensors with fewer numbers keep their moments in float32.

    Raises:
        ValueError: if a beta is outside [0, 1), `eps` is not positive, `smallest` is negative,
            the library is not there, or a parameter is sharded or on another kind of device.

    Source: Dettmers et al. 2022 (arXiv 2110.02861), the library bitsandbytes.

    Example:
        >>> AdamW8bit(betas=(0.9, 0.95), eps=1e-8, smallest=4096).smallest
        4096
    """

    betas: tuple[float, float]
    eps: float
    smallest: int

    def __post_init__(self) -> None:
        _check_moments(self, betas=self.betas, eps=self.eps)
        require(
            ok=self.smallest >= 0,
            owner=self,
            rule="smallest must not be negative",
            got={"smallest": self.smallest},
            remedy="pass 0 to keep all moments in 8 bits; 4096 is usual",
        )

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of some groups.

        Args:
            groups: one torch parameter group is made of each, in order.
        """
        require(
            ok=importlib.util.find_spec("bitsandbytes") is not None,
            owner=self,
            rule="the library bitsandbytes must be installed",
            got={"bitsandbytes": None},
            remedy="run pip install 'memtx[quantize]', or use AdamW",
        )
        parameters = [p for group in groups for p in group.parameters()]
        sharded = sum(hasattr(p, "full_tensor") for p in parameters)
        devices = sorted({p.device.type for p in parameters})
        require(
            ok=not sharded and set(devices) <= _FUSED,
            owner=self,
            rule="parameters must be whole tensors on a CPU or a CUDA device",
            got={"sharded": sharded, "devices": devices},
            remedy="use AdamW where parameters are sharded",
        )
        from bitsandbytes import optim

        library: Any = optim
        made: torch.optim.Optimizer = library.AdamW8bit(
            _held(groups), betas=self.betas, eps=self.eps, min_8bit_size=self.smallest
        )
        return made
