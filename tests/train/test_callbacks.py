"""Callbacks that end a run, and where they leave it."""

import json
import math
from dataclasses import replace

import pytest
import torch

from memtx.adapters import MemoryAdapter
from memtx.train import (
    Callback,
    EarlyStopping,
    ExplodingLoss,
    Guard,
    Higher,
    Lower,
    ResumeIfAny,
    RunCheckpoints,
    digest,
)
from tests.train import tiny


@pytest.fixture
def model() -> MemoryAdapter:
    return tiny.adapter(model=tiny.base(seed=0))


class Given:
    """An evaluation that gives listed numbers, one after the other."""

    def __init__(self, *, numbers: list[float], every: int) -> None:
        self.numbers = list(numbers)
        self.every = every

    def measure(self) -> dict[str, float]:
        return {"score": self.numbers.pop(0)}


class Saved:
    """A saver that notes at which steps it saved, and where the streams stood."""

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.steps: list[tuple[int, int]] = []
        self.closed = False

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, run, record) -> None:
        assert record["step"] == run.step
        self.steps.append((run.step, run.streams["facts"].state_dict()["position"]))

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("better", "numbers", "last"),
    [
        (Lower(by=0.0), [3.0, 2.0, 2.0, 2.5, 1.0], 4),
        (Lower(by=0.5), [3.0, 2.8, 2.6, 1.0], 3),
        (Higher(by=0.0), [3.0, 2.0, 4.0, 4.0, math.nan], 5),
        (Higher(by=0.0), [math.nan, math.nan, 1.0], 2),
        (Higher(by=0.0), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 6),
    ],
)
def test_a_run_ends_when_nothing_gets_better(model, better, numbers, last):
    stopping = EarlyStopping(number="score", better=better, patience=2)
    assert isinstance(stopping, Callback)
    saved = Saved(every=1000)
    records = replace(
        tiny.trainer(model=model, steps=12),
        evaluations=[Given(numbers=numbers, every=2)],
        callbacks=[stopping],
        checkpoints=[saved],
    ).run()
    # A measured step is the last at once, and the streams stand right behind it.
    assert len(records) == 2 * last
    assert saved.steps == [(2 * last, 2 * last)]
    assert saved.closed


def test_the_best_number_outlives_a_resume(model):
    stopping = EarlyStopping(number="score", better=Lower(by=0.0), patience=3)
    stopping.best, stopping.since = 1.5, 2
    other = EarlyStopping(number="score", better=Lower(by=0.0), patience=3)
    other.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    trainer = replace(
        tiny.trainer(model=model, steps=9),
        evaluations=[Given(numbers=[1.5], every=1)],
        callbacks=[other],
    )
    assert len(trainer.run()) == 1


def test_a_run_that_was_ended_takes_no_step_when_it_is_started_again(model, tmp_path):
    """A scheduler may start it until it is done: it would else learn on, a measure each time."""

    def begun(patience, numbers):
        return replace(
            tiny.trainer(model=model, steps=8),
            start=ResumeIfAny(folder=tmp_path),
            evaluations=[Given(numbers=numbers, every=1)],
            callbacks=[EarlyStopping(number="score", better=Lower(by=0.0), patience=patience)],
            checkpoints=[RunCheckpoints(folder=tmp_path, every=100, keep=1)],
        ).run()

    assert [record["step"] for record in begun(2, [1.0, 2.0, 2.0, 0.5])] == [1, 2, 3]
    assert begun(2, [0.5]) == []
    assert [record["step"] for record in begun(3, [2.0, 0.5])] == [4]


def test_a_number_that_never_came_is_warned_of(model):
    stopping = EarlyStopping(number="skore", better=Lower(by=0.0), patience=1)
    trainer = replace(tiny.trainer(model=model, steps=2), callbacks=[stopping])
    with pytest.warns(UserWarning, match="EarlyStopping: no record had the number 'skore' in 2"):
        trainer.run()


class Stopping:
    """Ends the run after a step."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def after_step(self, run, record) -> None:
        if run.step == self.step:
            run.stop = "enough"

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state) -> None:
        """Nothing."""


@pytest.mark.parametrize(("every", "last"), [(1000, 4), (3, 3)])
def test_batches_at_hand_are_learnt_before_a_run_ends(model, every, last):
    saved = Saved(every=every)
    trainer = replace(
        tiny.trainer(model=model, steps=9), callbacks=[Stopping(step=3)], checkpoints=[saved]
    )
    records = trainer.run()
    assert [record["step"] for record in records] == list(range(1, last + 1))
    assert saved.steps == [(last, last)]


class Spoiling:
    """Lets the model be twenty times as sure of itself from a step on."""

    every = 4

    def __init__(self, *, model: MemoryAdapter) -> None:
        self.model = model
        self.left: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        self.model.base.model.norm.weight.mul_(20.0)
        self.left = tiny.memory_of(self.model)
        return {}


def test_an_exploding_loss_ends_the_run_before_the_update_and_names_its_batch(model):
    guard, spoiling = ExplodingLoss(factor=1.5, window=4), Spoiling(model=model)
    assert isinstance(guard, Guard)
    trainer = replace(
        tiny.trainer(model=model, steps=9),
        accumulation=2,
        evaluations=[spoiling],
        callbacks=[guard],
    )
    with pytest.raises(FloatingPointError, match="stay below 1.5 times its median") as caught:
        trainer.run()
    assert tiny.same(tiny.memory_of(model), spoiling.left)
    message = str(caught.value)
    assert "Trainer: the loss must stay below 1.5 times its median over the last 4 steps" in message
    assert ", got step=5, loss=" in message
    batches = tiny.fact_batches(batch_size=2)
    for number in (8, 9):
        assert f"facts {number} (process 0, sha1 {digest(batches[number])}, share " in message
    assert "facts 7 " not in message
    assert "facts 10 " not in message


def test_a_loss_that_falls_or_wavers_does_not_explode(model):
    guard = ExplodingLoss(factor=1.5, window=4)
    records = replace(tiny.trainer(model=model, steps=30), callbacks=[guard]).run()
    assert len(records) == 30
    assert guard.losses == [record["loss"] for record in records[-4:]]
    again = ExplodingLoss(factor=1.5, window=4)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again.losses == guard.losses
    assert again.trouble({"loss": 1e9}) is not None
    assert again.trouble({"loss": guard.losses[-1]}) is None


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="Lower: by must .* got by=-1.0;"):
        Lower(by=-1.0)
    with pytest.raises(ValueError, match="Higher: by must .* got by=nan;"):
        Higher(by=math.nan)
    with pytest.raises(ValueError, match="EarlyStopping: patience must .* got patience=0;"):
        EarlyStopping(number="loss", better=Lower(by=0.0), patience=0)
    with pytest.raises(ValueError, match="ExplodingLoss: factor must be above 1 .* got factor=1.0"):
        ExplodingLoss(factor=1.0, window=1)
    with pytest.raises(ValueError, match="ExplodingLoss: window must .* got window=0;"):
        ExplodingLoss(factor=2.0, window=0)
