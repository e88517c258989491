"""One process; several are in test_distributed."""

import torch
import torch.distributed as dist
from torch import nn

from memtx.train import SingleProcess, launched


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
