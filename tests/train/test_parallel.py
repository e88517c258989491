"""One process; several are in test_distributed and test_fully_sharded."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from memtx.train import (
    DataParallel,
    FullyShardedDataParallel,
    ModulesAsUnits,
    SingleProcess,
    launched,
    launched_sharded,
    rows_per_process,
)
from memtx.train.parallel import Parallelism


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def sharded():
    return launched_sharded(
        units=ModulesAsUnits(modules=[]),
        param_dtype=None,
        reduce_dtype=None,
        reshard_after_forward=True,
    )


def test_a_script_started_alone_is_a_single_process():
    with launched() as parallelism:
        assert isinstance(parallelism, SingleProcess)
        assert isinstance(parallelism, Parallelism)
        assert (parallelism.rank, parallelism.world_size) == (0, 1)
        assert not dist.is_initialized()


def test_a_script_started_alone_may_be_sharded_in_one():
    with sharded() as parallelism:
        assert isinstance(parallelism, FullyShardedDataParallel)
        assert isinstance(parallelism, Parallelism)
        assert (parallelism.rank, parallelism.world_size) == (0, 1)
        model = nn.Linear(2, 1)
        wrapped = parallelism.wrap(model)
        assert wrapped is model
        assert isinstance(model.weight, DTensor)
        with parallelism.no_sync(wrapped):
            wrapped(torch.ones(1, 2)).sum().backward()
        wrapped(torch.ones(1, 2)).sum().backward()
        assert parallelism.clip([model.weight, model.bias], 1.0).item() == pytest.approx(12**0.5)
        assert model.weight.grad.full_tensor().norm().item() == pytest.approx((8 / 12) ** 0.5)
        with parallelism.whole(wrapped):
            assert not isinstance(model.weight, DTensor)
            assert not model(torch.ones(1, 2)).requires_grad
        assert isinstance(model.weight, DTensor)
        assert isinstance(DataParallel(device=torch.device("cpu")), Parallelism)
    assert not dist.is_initialized()


def test_what_fails_in_the_block_leaves_no_group():
    with pytest.raises(RuntimeError, match="^in the block$"), sharded():
        raise RuntimeError("in the block")
    assert not dist.is_initialized()


def test_a_single_process_changes_nothing():
    parallelism = SingleProcess(device=torch.device("cpu"))
    module, tensor = nn.Linear(1, 1), torch.ones(2)
    assert parallelism.wrap(module) is module
    assert parallelism.all_sum(tensor) is tensor
    with parallelism.no_sync(module), parallelism.whole(module):
        module(torch.ones(1)).backward()
    assert module.weight.grad is not None
    assert parallelism.clip(list(module.parameters()), 0.5).item() == pytest.approx(2**0.5)
    assert module.weight.grad.item() == pytest.approx(0.5 / 2**0.5)


def test_rows_that_do_not_divide_are_refused():
    class Three:
        rank, world_size, device = 0, 3, torch.device("cpu")

    assert rows_per_process(6, parallelism=Three()) == 2
    text = "^rows_per_process: the rows of a step must divide .* got rows=4, world_size=3; start"
    with pytest.raises(ValueError, match=text):
        rows_per_process(4, parallelism=Three())
