"""In what arithmetic a forward runs."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch

from memtx.checks import require, require_positive


@runtime_checkable
class Precision(Protocol):
    """Gives the context a forward runs in."""

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        """Give the context for forwards on `device`."""

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Give what scales the loss; disabled where nothing need be scaled."""


@final
@dataclass(frozen=True, kw_only=True)
class FullPrecision:
    """Run in the dtypes of the parameters.

    Args:
        None: it takes no arguments.

    Source: torch's own arithmetic.

    Example:
        >>> import torch
        >>> with FullPrecision().context(torch.device("cpu")):
        ...     torch.ones(1).dtype
        torch.float32
    """

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        """Give a context that changes nothing.

        Args:
            device: not used.
        """
        return nullcontext()

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Give a scaler that changes nothing.

        Args:
            device: where the forward runs.
        """
        return torch.amp.GradScaler(device.type, enabled=False)


@final
@dataclass(frozen=True, kw_only=True)
class BFloat16Autocast:
    """Run matrix products in bfloat16 while the trained parameters stay float32.

    Args:
        None: it takes no arguments.

    Source: `torch.autocast`.

    Example:
        >>> import torch
        >>> with BFloat16Autocast().context(torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
    """

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        """Give the autocast of a device.

        Args:
            device: where the forward runs.
        """
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Give a scaler that changes nothing.

        Args:
            device: where the forward runs.
        """
        return torch.amp.GradScaler(device.type, enabled=False)


@final
@dataclass(frozen=True, kw_only=True)
class Float16Autocast:
    """Run matrix products in float16, with a scaled loss, while trained parameters stay float32.

    Small gradients would vanish in float16, so the loss is multiplied by a scale. A step whose
    gradient overflows is left out and the scale multiplied by `backoff_factor`; after
    `growth_interval` steps without one it is multiplied by `growth_factor`.

    Args:
        initial_scale: the scale of the first step.
        growth_factor: above 1.
        backoff_factor: between 0 and 1.
        growth_interval: steps.

    Raises:
        ValueError: if a value is outside of its bounds.

    Source: Micikevicius et al. 2018 (arXiv 1710.03740), `torch.amp.GradScaler`.

    Example:
        >>> import torch
        >>> precision = Float16Autocast(
        ...     initial_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000)
        >>> precision.scaler(torch.device("cpu")).get_scale()
        65536.0
    """

    initial_scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int

    def __post_init__(self) -> None:
        require_positive(owner=self, sizes={"growth_interval": self.growth_interval})
        require(
            ok=1.0 <= self.initial_scale < math.inf
            and 1.0 < self.growth_factor < math.inf
            and 0.0 < self.backoff_factor < 1.0,
            owner=self,
            rule="initial_scale >= 1, growth_factor > 1 and 0 < backoff_factor < 1 must hold",
            got={
                "initial_scale": self.initial_scale,
                "growth_factor": self.growth_factor,
                "backoff_factor": self.backoff_factor,
            },
            remedy="65536, 2 and 0.5 are usual",
        )

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        """Give the autocast of a device.

        Args:
            device: where the forward runs.
        """
        return torch.autocast(device.type, dtype=torch.float16)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Give the scaler of the loss, at its initial scale.

        Args:
            device: where the forward runs.
        """
        return torch.amp.GradScaler(
            device.type,
            init_scale=self.initial_scale,
            growth_factor=self.growth_factor,
            backoff_factor=self.backoff_factor,
            growth_interval=self.growth_interval,
        )
