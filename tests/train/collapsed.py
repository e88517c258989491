"""A routed adapter whose routers have collapsed: two of eight routed chapters are never chosen.

Run as `python -m tests.train.collapsed FOLDER KIND` under torchrun, with kind `copied` or
`sharded`, it trains with revival and leaves each process's memory and records.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from memtx import TokenRouting
from memtx.adapters import MemoryAdapter
from memtx.train import (
    LayersAsUnits,
    Remedy,
    ReviveDead,
    RouterHealth,
    Trainer,
    launched,
    launched_sharded,
)
from memtx.train.run import Callback
from tests.train import tiny

DEAD = [7, 8]


def model() -> MemoryAdapter:
    """Rows of a scorer that come as `v, -v` leave no room among the first three for small ones."""
    base = tiny.base(seed=0)
    torch.manual_seed(0)
    made = tiny.routed_adapter(model=base, strategy=TokenRouting())
    with torch.no_grad():
        for reader in readers(made):
            rows = reader.router.scorer.weight
            rows[3:6] = -rows[:3]
            rows[6:] *= 1e-4
    return made


def readers(made):
    return [insertion.sublayers[0].sublayer for insertion in made.insertions]


def health(made: MemoryAdapter, *, remedies: Sequence[Remedy]) -> RouterHealth:
    return RouterHealth(model=made, every=2, min_choices=2.0, min_entropy=0.0, remedies=remedies)


def trainer(made: MemoryAdapter, *, callbacks: Sequence[Callback], steps: int) -> Trainer:
    """Slow learning, so that what changes is what the remedy did."""
    group = replace(tiny.all_memory(made), learning_rate=1e-4)
    return replace(
        tiny.trainer(model=made, steps=steps),
        streams={"facts": tiny.fact_batches(batch_size=4)},
        groups=[group],
        callbacks=callbacks,
    )


def launched_as(kind: str):
    if kind == "copied":
        return launched()
    return launched_sharded(
        units=LayersAsUnits(), param_dtype=None, reduce_dtype=None, reshard_after_forward=True
    )


def main(folder: Path, kind: str) -> None:
    with launched_as(kind) as parallelism:
        made = model()
        # Other noise before the run must not matter.
        torch.manual_seed(parallelism.rank)
        watch = health(made, remedies=[ReviveDead(noise=0.1, seed=3)])
        lesson = replace(trainer(made, callbacks=[watch], steps=4), parallelism=parallelism)
        records = lesson.run()
        memory = {
            name: held.full_tensor() if isinstance(held, DTensor) else held
            for name, held in tiny.memory_of(made).items()
        }
        save_file(memory, folder / f"memory-{parallelism.rank}.safetensors")
        path = folder / f"records-{parallelism.rank}.json"
        path.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
