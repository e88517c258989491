"""One process or several, as instances with one face."""

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, final, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memtx.checks import require

# Newer versions of torch renamed the option; nothing here has buffers that change.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@runtime_checkable
class Parallelism(Protocol):
    """What the training loop needs to know of the processes it runs in."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """Give a module whose backward pass leaves the mean gradient of all processes."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Give the sum of a tensor over all processes."""

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Give a context in which a backward pass only accumulates in this process."""


@final
class SingleProcess:
    """One process on one device.

    Args:
        device: where the model runs.

    Source: the degenerate case of data parallelism.

    Example:
        >>> import torch
        >>> SingleProcess(device=torch.device("cpu")).world_size
        1
    """

    def __init__(self, *, device: torch.device) -> None:
        self.device = device
        self.rank = 0
        self.world_size = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """Give the module as it is, on the device.

        Args:
            module: the module.
        """
        return module.to(self.device)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Give the tensor as it is.

        Args:
            tensor: the tensor.
        """
        return tensor

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Give a context that changes nothing.

        Args:
            module: not used.
        """
        return nullcontext()


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
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Give a context in which a backward pass only accumulates in this process.

        Args:
            module: what `wrap` gave.
        """
        return module.no_sync()  # type: ignore[operator, no-any-return]


@contextmanager
def launched() -> Iterator[SingleProcess | DataParallel]:
    """Give the parallelism this script was started with: alone, or one of `torchrun`'s processes.

    Under `torchrun` the process group is made here (NCCL on GPUs, gloo on CPU) and destroyed at
    the end of the block.
    """
    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield SingleProcess(device=device)
        return
    dist.init_process_group(backend="nccl" if on_gpu else "gloo")
    try:
        yield DataParallel(device=device)
    finally:
        dist.destroy_process_group()


def rows_per_process(rows: int, *, parallelism: Parallelism) -> int:
    """Give one process's share of a step's rows, so that any number of them takes equal steps.

    Args:
        rows: rows of the whole step.
        parallelism: the processes.

    Raises:
        ValueError: if the rows do not divide among the processes.
    """
    require(
        ok=rows % parallelism.world_size == 0,
        owner="rows_per_process",
        rule="the rows of a step must divide among the processes",
        got={"rows": rows, "world_size": parallelism.world_size},
        remedy="start another number of processes, or change the rows of a step",
    )
    return rows // parallelism.world_size
