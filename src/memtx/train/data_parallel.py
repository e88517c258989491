"""Data parallelism: each process holds the whole model and a part of the batch."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memtx.train.parallel import sum_over_processes

# Newer versions of torch renamed the option; nothing here has buffers that change.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@final
class DataParallel:
    """Data parallelism over the processes of an initialised process group.

    Args:
        device: where this process's copy of the model runs.

    Source: `torch.nn.parallel.DistributedDataParallel` (Li et al. 2020, arXiv 2006.15704).

    Example:
        >>> DataParallel.__name__  # needs a process group: see `launched`
        'DataParallel'
    """

    def __init__(self, *, device: torch.device) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Give the module wrapped, with the parameters of the first process in all.

        Args:
            module: the module.
        """
        options: dict[str, Any] = {_SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module.to(self.device), **options)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Give the sum of a tensor over all processes.

        Args:
            tensor: the tensor, equal in shape in all of them.
        """
        return sum_over_processes(tensor)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Give a context in which a backward pass only accumulates in this process.

        Args:
            module: what `wrap` gave.
        """
        return module.no_sync()  # type: ignore[operator, no-any-return]

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Give a context that changes nothing: the model is whole in each process.

        Args:
            module: not used.
        """
        return nullcontext()

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradient down to a norm of at most `max_norm`; give its norm as it was.

        Args:
            parameters: those with a gradient count.
            max_norm: `math.inf` scales nothing.
        """
        return nn.utils.clip_grad_norm_(parameters, max_norm)
