"""What each process of `test_trainer_processes` runs, with a folder.

First `poison`: the batch of the second process makes a loss that is not finite. Then `stop`:
float16 with an overflow, a frozen group, and early stopping by a number that differs between them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtx.train import (
    EarlyStopping,
    Float16Autocast,
    Lower,
    Objective,
    Trainer,
    find_learning_rate,
    launched,
)
from tests.train import tiny

STEP, STEPS = 3, 8


class Poisoned:
    """The term of facts, whose sum is NaN in one process at the second batch of a step."""

    def __init__(self, *, rank: int) -> None:
        self.inner = tiny.facts_term()
        self.name, self.stream, self.weight = "facts", "facts", 1.0
        self.rank = rank
        self.calls = 0

    def check(self, model: Any) -> None:
        """Any model will do."""

    def weights(self, model: Any) -> dict[str, float]:
        return self.inner.weights(model)

    def counts(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        return self.inner.counts(model, batch)

    def totals(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        self.calls += 1
        totals = self.inner.totals(model, batch)
        return totals * torch.nan if self.rank == 1 and self.calls == 2 * STEP else totals


class Given:
    """A measure that gets worse in the first process a step before it does in the second."""

    every = 1

    def __init__(self, *, rank: int) -> None:
        self.numbers = [3.0, 2.0, *([2.4] * 9 if rank == 0 else [1.0, *[9.0] * 8])]

    def measure(self) -> dict[str, float]:
        return {"score": self.numbers.pop(0)}


def composed(parallelism, term) -> Trainer:
    model = tiny.adapter(model=tiny.base(seed=0))
    return replace(
        tiny.trainer(model=model, steps=STEPS),
        objective=Objective(model=model, terms=[term]),
        streams={"facts": tiny.fact_batches(batch_size=1)},
        parallelism=parallelism,
        accumulation=2,
    )


def poison(parallelism) -> dict[str, object]:
    trainer = composed(parallelism, Poisoned(rank=parallelism.rank))
    try:
        trainer.run()
    except FloatingPointError as error:
        return {"message": str(error)}
    return {"message": None}


def stop(parallelism) -> dict[str, object]:
    trainer = composed(parallelism, tiny.facts_term())
    model = trainer.objective.model
    (memory,) = trainer.groups
    bank = replace(memory, name="bank", modules=[model.banks], learning_rate=0.0)
    reading = replace(memory, name="reading", modules=[model.insertions], without=[model.banks])
    trainer = replace(
        trainer,
        groups=[bank, reading],
        precision=Float16Autocast(
            initial_scale=2.0**100, growth_factor=2.0, backoff_factor=2.0**-90, growth_interval=99
        ),
        evaluations=[Given(rank=parallelism.rank)],
        callbacks=[EarlyStopping(number="score", better=Lower(by=0.0), patience=2)],
    )
    before = tiny.memory_of(model)
    # The test of rates comes first, and must leave nothing: a run wraps the model a second time.
    rates = replace(trainer, precision=tiny.trainer(model=model, steps=1).precision)
    found = find_learning_rate(rates, lowest=1e-3, highest=1e2, steps=20)
    untouched = tiny.same(tiny.memory_of(model), before)
    records = trainer.run()
    after = tiny.memory_of(model)
    return {
        "factor": found.factor,
        "untouched": untouched,
        "frozen": torch.equal(after["banks.0.tokens"], before["banks.0.tokens"]),
        "moved": sum(not torch.equal(after[name], before[name]) for name in after),
        "left_out": [record["step_left_out"] for record in records],
        "losses": [record["loss"] for record in records],
        "sums": [float(tensor.double().sum()) for tensor in after.values()],
    }


def main(folder: Path) -> None:
    with launched() as parallelism:
        found = {"poison": poison(parallelism), "stop": stop(parallelism)}
        path = folder / f"rank-{parallelism.rank}.json"
        path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
