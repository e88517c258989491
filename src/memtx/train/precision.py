"""In what arithmetic a forward runs."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch


@runtime_checkable
class Precision(Protocol):
    """Gives the context a forward runs in."""

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        """Give the context for forwards on `device`."""


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
