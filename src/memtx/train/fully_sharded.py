"""Fully sharded data parallelism: each process holds a part of every parameter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memtx.checks import require
from memtx.train.parallel import sum_over_processes
from memtx.train.units import Units


@final
class FullyShardedDataParallel:
    """FSDP2 over the processes of an initialised process group.

    Between steps each process holds its part of every parameter, gradient and optimizer state. A
    unit's parameters are gathered before its forward and its backward pass; the rest (banks,
    embedding, insertions, head) is gathered once a step and stays until its gradient is sent off.
    So a bank that many blocks read has one owner, and its gradient is that of all of them.

    Args:
        device: where this process computes.
        units: what is gathered together.
        param_dtype: dtype of gathered parameters, and so of the arithmetic; the parts stay as they
            are. None leaves it as it is.
        reduce_dtype: dtype in which gradients are added up over processes; None is that of the
            gathered parameters.
        reshard_after_forward: whether a unit is freed behind its forward and gathered again for its
            backward pass, which takes less memory and half as much communication again.

    Raises:
        ValueError: if there is no process group.

    Source: torch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277, in its second form).

    Example:
        >>> FullyShardedDataParallel.__name__  # needs a process group: see `launched_sharded`
        'FullyShardedDataParallel'
    """

    def __init__(
        self,
        *,
        device: torch.device,
        units: Units,
        param_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype | None,
        reshard_after_forward: bool,
    ) -> None:
        require(
            ok=dist.is_initialized(),
            owner=self,
            rule="there must be a process group",
            got={"initialized": False},
            remedy="make it inside `with launched_sharded(...)` or `with launched()`",
        )
        self.device = device
        self.units = units
        self.param_dtype = param_dtype
        self.reduce_dtype = reduce_dtype
        self.reshard_after_forward = reshard_after_forward
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Shard a module in place, with the numbers of the first process, and give it back.

        One that is sharded already is given back as it is.

        Args:
            module: the module that is called, an `Objective` or a model. In all processes but the
                first its parameters may be on the meta device.

        Raises:
            ValueError: if units share what nothing else holds, a model in it is sharded already,
                or the trainable parameters of a unit differ in dtype.
        """
        from memtx.train.sharding import shard

        return shard(
            module,
            units=self.units,
            device=self.device,
            param_dtype=self.param_dtype,
            reduce_dtype=self.reduce_dtype,
            reshard_after_forward=self.reshard_after_forward,
        )

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Give the sum of a tensor over all processes.

        Args:
            tensor: the tensor, equal in shape in all of them.
        """
        return sum_over_processes(tensor)

    @contextmanager
    def no_sync(self, module: nn.Module) -> Iterator[None]:
        """Give a context in which a backward pass only accumulates, whole, in this process.

        Args:
            module: what `wrap` gave.
        """
        root: Any = module
        root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            root.set_requires_gradient_sync(True)

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """Give a context, without gradients, in which the model itself may be called.

        Every process must make the same calls in it: units are gathered by all at each call.

        Args:
            module: what `wrap` gave.
        """
        from memtx.train.sharding import gathered

        with gathered(module):
            yield

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradient down to a norm of at most `max_norm`; give its norm as it was.

        Args:
            parameters: those with a gradient count; each process has its parts of them.
            max_norm: `math.inf` scales nothing.
        """
        norm: Any = nn.utils.clip_grad_norm_(parameters, max_norm)
        whole: Tensor = norm.full_tensor()
        return whole
