"""The face of one process or several, and one process."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, final, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memtx.checks import require
from memtx.train.sparse_gradients import clip_gradients


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

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Give a context in which the model itself may be called, past what `wrap` gave."""

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradient down to a norm of at most `max_norm`; give its norm as it was."""


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
        return clip_gradients(parameters, max_norm)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Give the sum of a tensor over all processes of the default group.

    Args:
        tensor: the tensor, equal in shape in all of them; on the CPU or on this process's GPU.
    """
    total = tensor.clone()
    dist.all_reduce(total)
    return total


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
