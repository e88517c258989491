"""One process; several are in test_distributed."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from memtx.train import SingleProcess, launched, rows_per_process


def test_a_script_started_alone_is_a_single_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched() as parallelism:
        assert isinstance(parallelism, SingleProcess)
        assert (parallelism.rank, parallelism.world_size) == (0, 1)
        assert not dist.is_initialized()


def test_a_single_process_changes_nothing():
    parallelism = SingleProcess(device=torch.device("cpu"))
    module, tensor = nn.Linear(1, 1), torch.ones(2)
    assert parallelism.wrap(module) is module
    assert parallelism.all_sum(tensor) is tensor
    with parallelism.no_sync(module):
        module(torch.ones(1)).backward()
    assert module.weight.grad is not None


def test_rows_that_do_not_divide_are_refused():
    class Three:
        rank, world_size, device = 0, 3, torch.device("cpu")

    assert rows_per_process(6, parallelism=Three()) == 2
    text = "^rows_per_process: the rows of a step must divide .* got rows=4, world_size=3; start"
    with pytest.raises(ValueError, match=text):
        rows_per_process(4, parallelism=Three())
