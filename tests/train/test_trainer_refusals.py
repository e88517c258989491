"""What the training loop refuses, and how it stops when numbers break."""

import json
import math
from dataclasses import replace

import pytest
import torch

from memtx.adapters import MemoryAdapter
from memtx.spec import load_adapter
from memtx.train import AdamW, Checkpoints, JsonLines, WarmupCosine
from tests.train import tiny


@pytest.fixture
def model() -> MemoryAdapter:
    return tiny.adapter(model=tiny.base(seed=0))


class Poison:
    """Puts a NaN into the memory at one step, and remembers the memory with it."""

    def __init__(self, *, model: MemoryAdapter, every: int) -> None:
        self.model = model
        self.every = every
        self.left: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        self.model.insertions[1].sublayers[0].sublayer.o_proj.weight[0, 0] = math.nan
        self.left = tiny.memory_of(self.model)
        return {}


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(model, tmp_path):
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    logger, poison = JsonLines(path=path), Poison(model=model, every=3)
    trainer = replace(
        tiny.trainer(model=model, steps=8),
        evaluations=[poison],
        checkpoints=[Checkpoints(model=model, folder=folder, every=2, keep=1)],
        loggers=[logger],
    )
    with pytest.raises(
        FloatingPointError, match="must stay finite, got step=4, loss=nan, .*facts 3 "
    ):
        trainer.run()
    now = tiny.memory_of(model)
    assert all(
        torch.equal(now[name].nan_to_num(), left.nan_to_num()) for name, left in poison.left.items()
    )
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    with pytest.raises(ValueError, match="was not closed, got step=4;"):
        logger.log({"step": 4})
    assert names_in(folder) == ["step-00000002"]
    loaded = load_adapter(folder / "step-00000002", base=tiny.base(seed=0))
    assert all(parameter.isfinite().all() for parameter in loaded.memory_parameters())


def test_a_monstrous_learning_rate_stops_with_a_sound_checkpoint(model, tmp_path):
    trainer = tiny.trainer(model=model, steps=6)
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    group = replace(trainer.groups[0], learning_rate=1e10)
    with pytest.raises(FloatingPointError, match="Trainer: .* loss=nan"):
        replace(trainer, groups=[group], checkpoints=[checkpoints]).run()
    (name,) = names_in(tmp_path)
    loaded = load_adapter(tmp_path / name, base=tiny.base(seed=0))
    assert all(parameter.isfinite().all() for parameter in loaded.memory_parameters())


def test_a_memory_that_breaks_at_the_end_is_not_saved_over_a_sound_one(model, tmp_path):
    # No forward follows the last step, so no loss would tell.
    trainer = replace(
        tiny.trainer(model=model, steps=2),
        evaluations=[Poison(model=model, every=2)],
        checkpoints=[Checkpoints(model=model, folder=tmp_path, every=1, keep=1)],
    )
    with pytest.raises(FloatingPointError, match="got step=2, not finite=\\['insertions.1"):
        trainer.run()
    assert names_in(tmp_path) == ["step-00000001"]


def test_loggers_are_closed_when_an_evaluation_fails(model, tmp_path):
    class Failing:
        every = 1

        def measure(self) -> dict[str, float]:
            raise RuntimeError("no such measure")

    logger = JsonLines(path=tmp_path / "metrics.jsonl")
    trainer = replace(tiny.trainer(model=model, steps=1), evaluations=[Failing()], loggers=[logger])
    with pytest.raises(RuntimeError, match="no such measure"):
        trainer.run()
    with pytest.raises(ValueError, match="was not closed, got step=1;"):
        logger.log({"step": 1})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"precision": "bf16"}, "instances with `context`, got precision='bf16';"),
        ({"optimizer": AdamW}, "instances with `make`, got optimizer=<class 'memtx.*AdamW'>;"),
        ({"objective": torch.nn.Identity()}, "with `counts`, got objective='Identity';"),
        ({"streams": {"facts": [1]}}, "instances with `next_batch`, got streams='list';"),
        ({"streams": [1]}, "instances with `next_batch`, got streams='tuple';"),
        ({"loggers": JsonLines}, "instances with `log`, got loggers='tuple';"),
        ({"callbacks": [print]}, "instances with `after_step`, got callbacks='builtin_func"),
        ({"checkpoints": ["run"]}, "instances with `save`, got checkpoints='run';"),
        ({"schedule": None}, "instances with `factor`, got schedule=None;"),
        ({"steps": 0}, "steps must be an integer of at least 1, got steps=0;"),
        ({"accumulation": 0}, "accumulation must be .* got accumulation=0;"),
        ({"steps": 3}, "as long as the run, got steps=3, schedule.total_steps=2;"),
        ({"streams": {}}, "those the terms read, \\['facts'\\], got streams=\\[\\];"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, got clip_norm=0.0;"),
        ({"clip_norm": math.nan}, "clip_norm must be positive, got clip_norm=nan;"),
    ],
)
def test_wrong_values_are_refused(model, changes, expected):
    with pytest.raises(ValueError, match=f"^Trainer: .*{expected}"):
        replace(tiny.trainer(model=model, steps=2), **changes)


def test_a_schedule_of_another_length_is_refused(model):
    schedule = WarmupCosine(warmup_steps=0, total_steps=9, floor=0.0)
    with pytest.raises(ValueError, match="got steps=2, schedule.total_steps=9;"):
        replace(tiny.trainer(model=model, steps=2), schedule=schedule)


def test_streams_that_no_term_reads_are_refused(model):
    batches = tiny.fact_batches(batch_size=1)
    trainer = tiny.trainer(model=model, steps=1)
    with pytest.raises(ValueError, match="got streams=\\['facts', 'other'\\];"):
        replace(trainer, streams={"facts": batches, "other": batches})


def test_groups_that_leave_something_out_are_refused_before_the_first_step(model):
    before, trainer = tiny.memory_of(model), tiny.trainer(model=model, steps=1)
    group = replace(trainer.groups[0], modules=[model.banks])
    with pytest.raises(ValueError, match="left out=\\['model.insertions.0"):
        replace(trainer, groups=[group]).run()
    assert tiny.same(tiny.memory_of(model), before)
