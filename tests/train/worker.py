"""What each process of `test_distributed` runs: `python -m tests.train.worker FOLDER JOB`.

Job `teach` trains, `fail` dies in the second process at the second step, and `route` trains a
routed memory. The folder gets the first process's metrics, checkpoints and memory, and what each
process found out about itself.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from memtx import HybridRouting
from memtx.adapters import MemoryAdapter
from memtx.train import (
    AdamW,
    Checkpoints,
    JsonLines,
    Objective,
    ParameterGroup,
    Trainer,
    launched,
)
from memtx.train.data_parallel import DataParallel
from memtx.train.parallel import SingleProcess
from tests.train import tiny

STEPS = 4


def teaching(
    *,
    model: MemoryAdapter,
    parallelism: SingleProcess | DataParallel,
    accumulation: int,
    folder: Path,
) -> Trainer:
    """Facts one by one, so that no two processes have equal counts, with background."""
    terms = [tiny.facts_term(), tiny.locality_term(weight=0.5)]
    # Every process has somewhere to write, so that one that should not is seen.
    own = folder / f"written-{parallelism.rank}"
    return replace(
        tiny.trainer(model=model, steps=STEPS),
        objective=Objective(model=model, terms=terms),
        streams={
            "facts": tiny.fact_batches(batch_size=1),
            "background": tiny.text_batches(batch_size=1),
        },
        parallelism=parallelism,
        accumulation=accumulation,
        clip_norm=1.0,
        checkpoints=[Checkpoints(model=model, folder=own / "saved", every=2, keep=9)],
        loggers=[JsonLines(path=own / "metrics.jsonl")],
    )


class Noting:
    """An optimizer that notes the gradients of the first step, as it gets them."""

    def __init__(self, *, model: MemoryAdapter) -> None:
        self.model = model
        self.noted: dict[str, torch.Tensor] = {}

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        made = AdamW(betas=(0.9, 0.95), eps=1e-8).make(groups)
        made.register_step_pre_hook(self.note)
        return made

    def note(self, optimizer, args, kwargs) -> None:
        if not self.noted:
            parameters = self.model.named_memory_parameters()
            self.noted = {name: p.grad.detach().clone() for name, p in parameters}


def routed(*, parallelism: SingleProcess | DataParallel, batch_size: int) -> tuple[Trainer, Noting]:
    """A routed memory with every loss of routers, two windows and a prompt in a row."""
    base = tiny.base(seed=0)
    torch.manual_seed(parallelism.rank)
    model = tiny.routed_adapter(model=base, strategy=HybridRouting(window=2))
    noting = Noting(model=model)
    trainer = replace(
        tiny.trainer(model=model, steps=STEPS),
        streams={"facts": tiny.fact_batches(batch_size=batch_size)},
        parallelism=parallelism,
        optimizer=noting,
    )
    return trainer, noting


def route(folder: Path) -> None:
    with launched() as parallelism:
        trainer, noting = routed(parallelism=parallelism, batch_size=2)
        records = trainer.run()
        name = f"rank-{parallelism.rank}"
        (folder / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
        save_file(noting.noted, folder / f"{name}.safetensors")


class Death:
    """An evaluation that dies in one process."""

    every = 2

    def __init__(self, *, rank: int) -> None:
        self.rank = rank

    def measure(self) -> dict[str, float]:
        if self.rank == 1:
            raise RuntimeError("the second process dies")
        return {}


def main(folder: Path, job: str) -> None:
    with launched() as parallelism:
        rank = parallelism.rank
        base = tiny.base(seed=0)
        # Each process starts elsewhere: the first one's memory must become everyone's.
        torch.manual_seed(rank)
        model = tiny.adapter(model=base)
        before = tiny.base_of(model)
        trainer = teaching(model=model, parallelism=parallelism, accumulation=2, folder=folder)
        if job == "fail":
            trainer = replace(trainer, evaluations=[Death(rank=rank)])
        records = trainer.run()
        found = {
            "world_size": parallelism.world_size,
            "kind": type(parallelism).__name__,
            "records": records,
            "base_is_as_before": tiny.same(tiny.base_of(model), before),
            "base_has_no_gradient": all(p.grad is None for p in base.parameters()),
        }
        (folder / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        save_file(tiny.memory_of(model), folder / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "route":
        route(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
