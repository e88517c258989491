"""Cutting a model into the parts of its processes, by torch's FSDP2."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from memtx.checks import require
from memtx.train.opaque import pass_contexts_by
from memtx.train.settling import settle, unsettled
from memtx.train.terms import Objective
from memtx.train.units import Units, held_outside

OWNER = "FullyShardedDataParallel"


def shard(
    module: nn.Module,
    *,
    units: Units,
    device: torch.device,
    param_dtype: torch.dtype | None,
    reduce_dtype: torch.dtype | None,
    reshard_after_forward: bool,
) -> nn.Module:
    """Shard a module in place and give it back; see `FullyShardedDataParallel`, which has these.

    Args:
        module: see there.
        units: see there.
        device: see there.
        param_dtype: see there.
        reduce_dtype: see there.
        reshard_after_forward: see there.

    Raises:
        ValueError: see there.
    """
    if isinstance(module, FSDPModule):
        return module
    inner = [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]
    require(
        ok=not inner,
        owner=OWNER,
        rule="a model can be sharded once",
        got={"sharded already": inner[:5]},
        remedy="train on with the objective that was sharded, or build the model anew",
    )
    found = units.of(module.model if isinstance(module, Objective) else module)
    shared = held_outside(module, units=found)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        # What a unit is called with has that dtype by itself, and a copy of the `Context`
        # would not be the one that the model looks into afterwards.
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=param_dtype,
            reduce_dtype=reduce_dtype,
            cast_forward_inputs=False,
        ),
    }
    settled = {id(each) for each in shared}
    for unit in found:
        tensors = unsettled(unit, without=settled)
        _check_dtypes(unit, tensors=tensors)
        settle(tensors, device=device)
        settled |= {id(each) for each in tensors}
        fully_shard(
            unit, reshard_after_forward=reshard_after_forward, ignored_params=shared, **options
        )
        pass_contexts_by(unit)
    rest = unsettled(module, without=settled - {id(each) for each in shared})
    _check_dtypes(module, tensors=rest)
    settle(rest, device=device)
    fully_shard(module, reshard_after_forward=False, **options)
    _check_sharded(module)
    _make_root(module)
    return module


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """Gather the root's own parameters for a block without gradients, and free all behind it.

    Args:
        root: what `shard` gave.
    """
    own: Any = root
    with torch.no_grad():
        own.unshard()
        try:
            yield
        finally:
            # What stayed gathered would not see the optimizer's next step.
            _reshard(root)


def _reshard(root: nn.Module) -> None:
    for part in root.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _check_dtypes(unit: nn.Module, *, tensors: Sequence[Tensor]) -> None:
    """Refuse gradients that cannot be sent in one piece."""
    own = {id(each) for each in tensors if each.requires_grad}
    dtypes = {str(each.dtype): name for name, each in unit.named_parameters() if id(each) in own}
    require(
        ok=len(dtypes) <= 1,
        owner=OWNER,
        rule="the trainable parameters of a unit, or of the rest, must have one dtype",
        got={"unit": type(unit).__name__, "dtypes": dtypes},
        remedy="cast them to one dtype; param_dtype alone decides what is computed in",
    )


def _check_sharded(module: nn.Module) -> None:
    """Refuse a parameter that is in no process's care: its gradient would be of one process."""
    lost = [name for name, each in module.named_parameters() if not isinstance(each, DTensor)]
    require(
        ok=not lost,
        owner=OWNER,
        rule="every parameter must be sharded",
        got={"not sharded": lost[:5]},
        remedy="let the model or a unit hold the part it belongs to",
    )


def _make_root(module: nn.Module) -> None:
    """Let torch see now that this is the root, before a part of it is called by itself."""
    name = "_before_all"
    setattr(module, name, _nothing)
    register_fsdp_forward_method(module, name)
    getattr(module, name)(None)
    delattr(module, name)
    _reshard(module)


def _nothing(argument: None) -> None:
    """Do nothing."""
