"""Factories of seconds for `memtx train`: every form that it takes, and some that it refuses."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from memtx.data import Batches, FactRows
from memtx.train import DataParallel, SingleProcess, Trainer
from tests.evaluate import models
from tests.train import tiny

STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Lesson:
    tokenizer: Any
    base_name: str
    trainer: Any


@dataclass(frozen=True, kw_only=True)
class Several:
    tokenizer: Any
    trainers: dict[str, Any]


def whole_trainer() -> Trainer:
    model = models.whole()
    group = replace(tiny.all_memory(tiny.adapter(model=tiny.base(seed=0))), modules=[model])
    made = tiny.trainer(model=tiny.adapter(model=tiny.base(seed=0)), steps=STEPS)
    objective = type(made.objective)(model=model, terms=made.objective.terms)
    return replace(made, objective=objective, groups=[group])


def alone() -> Trainer:
    """A Trainer by itself."""
    return tiny.trainer(model=tiny.adapter(model=tiny.base(seed=0)), steps=STEPS)


def lesson(*, folder: Path, seed: int, parallelism: SingleProcess | DataParallel) -> Lesson:
    """Something with a trainer, in any number of processes."""
    base, tokenizer = tiny.base(seed=0), tiny.byte_tokenizer(crosses_words=False)
    if parallelism.rank == 0:
        base.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    rows = FactRows(facts=tiny.FACTS, tokenizer=tokenizer)
    batches = Batches(rows=rows, batch_size=4 // parallelism.world_size, seed=seed, pad_token_id=0)
    made = tiny.trainer(model=tiny.adapter(model=base), steps=STEPS)
    return Lesson(
        tokenizer=tokenizer,
        base_name=str(folder / "base"),
        trainer=replace(made, parallelism=parallelism, streams={"facts": batches}),
    )


def on_base(*, base: nn.Module, tokenizer: Any, steps: int) -> Lesson:
    """On what --base names."""
    made = tiny.trainer(model=tiny.adapter(model=base), steps=steps)
    return Lesson(tokenizer=tokenizer, base_name="named", trainer=made)


def several(*, documents: list[str], held_out: list[str]) -> Several:
    """Several, made when called or at once, with a text."""
    assert len(documents) > len(held_out) > 0
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    return Several(tokenizer=tokenizer, trainers={"whole": whole_trainer, "adapter": alone()})


def whole() -> Lesson:
    return Lesson(
        tokenizer=tiny.byte_tokenizer(crosses_words=False), base_name="", trainer=whole_trainer()
    )


def with_lora() -> Trainer:
    """What `save` does not write."""
    made = alone()
    model = models.lora()
    group = replace(tiny.all_memory(made.objective.model), modules=[model])
    objective = type(made.objective)(model=model, terms=made.objective.terms)
    return replace(made, objective=objective, groups=[group])


def number() -> int:
    return 3


def numbers() -> Several:
    return Several(tokenizer=None, trainers={"one": number})


def broken() -> Trainer:
    raise KeyError("mine")


def refusing() -> Trainer:
    return replace(alone(), steps=0)
