"""The processes a script was started with."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist

from memtx.train.data_parallel import DataParallel
from memtx.train.fully_sharded import FullyShardedDataParallel
from memtx.train.parallel import SingleProcess
from memtx.train.units import Units
from memtx.train.watch import watched


@contextmanager
def launched() -> Iterator[SingleProcess | DataParallel]:
    """Give the parallelism this script was started with: alone, or one of `torchrun`'s processes.

    Under `torchrun`, on one node or many, the process group is made here (NCCL on GPUs, gloo on
    CPU) and destroyed at the end of the block.
    """
    if _is_alone():
        yield SingleProcess(device=_device())
        return
    with _group():
        yield DataParallel(device=_device())


@contextmanager
def launched_sharded(
    *,
    units: Units,
    param_dtype: torch.dtype | None,
    reduce_dtype: torch.dtype | None,
    reshard_after_forward: bool,
) -> Iterator[FullyShardedDataParallel]:
    """Give full sharding over the processes this script was started with.

    Started alone, it is one of one: the same arithmetic, with nothing to send.

    Args:
        units: as `FullyShardedDataParallel` takes it.
        param_dtype: as there.
        reduce_dtype: as there.
        reshard_after_forward: as there.
    """
    with _group():
        yield FullyShardedDataParallel(
            device=_device(),
            units=units,
            param_dtype=param_dtype,
            reduce_dtype=reduce_dtype,
            reshard_after_forward=reshard_after_forward,
        )


def _is_alone() -> bool:
    return "WORLD_SIZE" not in os.environ


def _device() -> torch.device:
    """Give this process's device: its number on its node counts, not that among all."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def _group() -> Iterator[None]:
    """Make the process group for the block."""
    device = _device()
    # Small sums of numbers that lie on the CPU go by gloo, so that no one waits for a GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if _is_alone():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend=backend, store=store, rank=0, world_size=1)
    else:
        dist.init_process_group(backend=backend)
    try:
        with nullcontext() if _is_alone() else watched():
            yield
    finally:
        dist.destroy_process_group()
