"""Updates that wait for nobody, beside the plain ones that look at the numbers first."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memtx.adapters import MemoryAdapter
from memtx.data import Batches, TextRows
from memtx.train import SGD, Adam, AdamW, ExplodingLoss, FullPrecision, Objective
from memtx.train.run import Patient, Run
from memtx.train.updates import Gated, LookedAtFirst, updates_of
from tests.train import sharded_models as models
from tests.train import tiny
from tests.train.broken import Broken

TIMES = {"tokens_per_second", "step_seconds", "data_seconds"}
FUSED = [AdamW(betas=(0.9, 0.95), eps=1e-8), Adam(betas=(0.9, 0.95), eps=1e-8), SGD(momentum=0.9)]
STEPS, BROKEN = 6, 3


@pytest.fixture
def model() -> MemoryAdapter:
    return tiny.adapter(model=tiny.base(seed=0))


class Unfused:
    """AdamW that has no kernel for all tensors, and so no gate."""

    def make(self, groups) -> torch.optim.Optimizer:
        made = [{"params": g.parameters(), "lr": g.learning_rate} for g in groups]
        return torch.optim.AdamW(made, weight_decay=0.0, foreach=False)


class Kept:
    """An optimizer whose state is looked at behind the run."""

    def __init__(self, *, inner) -> None:
        self.inner = inner
        self.made: torch.optim.Optimizer | None = None

    def make(self, groups) -> torch.optim.Optimizer:
        self.made = self.inner.make(groups)
        return self.made

    def state(self) -> list[torch.Tensor]:
        found = [value for each in self.made.state.values() for value in each.values()]
        return [value.clone() for value in found if isinstance(value, torch.Tensor)]


class Noted:
    """A logger that keeps the numbers of steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def begin(self, step: int) -> None:
        """Nothing is opened."""

    def log(self, record) -> None:
        self.steps.append(record["step"])

    def close(self) -> None:
        """Nothing is open."""


def made(trainer, *, scaler, callbacks, optimizer) -> Run:
    return Run(
        objective=trainer.objective,
        wrapped=trainer.objective,
        streams=trainer.streams,
        groups=trainer.groups,
        optimizer=optimizer.make(trainer.groups),
        scaler=scaler,
        parallelism=trainer.parallelism,
        callbacks=callbacks,
        settings={},
        steps=STEPS,
        step=0,
        stop=None,
    )


def test_the_device_decides_where_it_can_and_the_host_where_it_must(model):
    trainer = tiny.trainer(model=model, steps=STEPS)
    off = FullPrecision().scaler(torch.device("cpu"))
    on = torch.amp.GradScaler("cpu")
    guard = ExplodingLoss(factor=3.0, window=1)
    for optimizer in FUSED:
        run = made(trainer, scaler=off, callbacks=[], optimizer=optimizer)
        assert isinstance(updates_of(run), Gated)
        for changes in (
            {"scaler": on},
            {"callbacks": [guard]},
            {"optimizer": Unfused().make(trainer.groups)},
        ):
            assert isinstance(updates_of(replace(run, **changes)), LookedAtFirst)


def without_times(records):
    return [{key: each[key] for key in each.keys() - TIMES} for each in records]


class Unmoved:
    """A guard that objects to nothing: with it the host looks first."""

    def trouble(self, record) -> None:
        return None

    def after_step(self, run, record) -> None:
        """Nothing to look at."""

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state) -> None:
        """Nothing to take up."""


@pytest.mark.parametrize("optimizer", FUSED)
def test_both_ways_are_equal_to_the_bit(optimizer):
    ways = []
    for callbacks in ([], [Unmoved()]):
        model = tiny.adapter(model=tiny.base(seed=0))
        kept = Kept(inner=optimizer)
        trainer = replace(
            tiny.trainer(model=model, steps=STEPS), optimizer=kept, callbacks=callbacks
        )
        ways.append((without_times(trainer.run()), tiny.memory_of(model), kept.state()))
    (one, first, state), (other, second, plain) = ways
    assert one == other
    assert tiny.same(first, second)
    assert [each["step"] for each in one] == list(range(1, STEPS + 1))
    assert all(torch.equal(*pair) for pair in zip(state, plain, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", [*FUSED, Unfused()])
def test_parameters_and_moments_stay_those_of_the_step_before(optimizer, value):
    # Nobody waits: the step after the broken one is on its way when the host gets to know.
    found = []
    for broken, steps in ((BROKEN, STEPS), (-1, BROKEN - 1)):
        model = tiny.adapter(model=tiny.base(seed=0))
        kept, noted = Kept(inner=optimizer), Noted()
        term = Broken(value=value, step=broken)
        trainer = replace(
            tiny.trainer(model=model, steps=steps),
            objective=Objective(model=model, terms=[term]),
            optimizer=kept,
            loggers=[noted],
        )
        if broken > 0:
            with pytest.raises(FloatingPointError, match=f"got step={BROKEN}, .*'facts 2 \\("):
                trainer.run()
            assert term.calls == (BROKEN if isinstance(optimizer, Unfused) else BROKEN + 1)
        else:
            trainer.run()
        assert noted.steps == [1, 2]
        found.append((tiny.memory_of(model), kept.state()))
    (stopped, moments), (wanted, wanted_moments) = found
    assert tiny.same(stopped, wanted)
    assert moments
    assert all(torch.equal(*pair) for pair in zip(moments, wanted_moments, strict=True))


class Told:
    """A patient callback: notes the step of its record, and where the run stands."""

    def __init__(self, *, urgent: int) -> None:
        self.urgent = urgent
        self.told: list[tuple[float, int]] = []

    def after_step(self, run, record) -> None:
        self.told.append((record["step"], run.step))

    def is_urgent(self, step: int) -> bool:
        return step == self.urgent

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state) -> None:
        """Nothing to take up."""


def test_a_patient_callback_is_told_of_a_step_when_the_next_one_is_on_its_way(model):
    told = Told(urgent=3)
    assert isinstance(told, Patient)
    replace(tiny.trainer(model=model, steps=STEPS), callbacks=[told]).run()
    assert told.told == [(1, 2), (2, 3), (3, 3), (4, 5), (5, 6), (6, 6)]


def test_one_callback_that_is_not_patient_makes_all_steps_wait(model):
    told = Told(urgent=-1)
    guard = Unmoved()
    replace(tiny.trainer(model=model, steps=3), callbacks=[told, guard]).run()
    assert told.told == [(1, 1), (2, 2), (3, 3)]


class Ending:
    """A stream that fails when so many batches were taken."""

    def __init__(self, *, after: int) -> None:
        self.inner = tiny.fact_batches(batch_size=2)
        self.left = after

    def next_batch(self, *, rank: int, world_size: int):
        if not self.left:
            raise OSError("the disk is gone")
        self.left -= 1
        return self.inner.next_batch(rank=rank, world_size=world_size)

    def state_dict(self) -> dict[str, object]:
        return self.inner.state_dict()

    def load_state_dict(self, state) -> None:
        self.inner.load_state_dict(state)


def test_what_ends_a_run_leaves_no_step_untold(model):
    noted = Noted()
    trainer = replace(
        tiny.trainer(model=model, steps=STEPS),
        streams={"facts": Ending(after=3)},
        loggers=[noted],
    )
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.run()
    # The batch of the fourth step was wanted in the midst of the third, which was not updated.
    assert noted.steps == [1, 2]


class Asked(TorchDispatchMode):
    """Notes which files of memtx ask a tensor for its numbers, as the host then waits."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, function, types, args, kwargs):
        name = function._schema.name.removeprefix("aten::")
        masks = [each for each in args[1:2] if isinstance(each, list | tuple)]
        by_mask = any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for mask in masks
            for each in mask
        )
        if name in self.WAITS or (name.startswith("index") and by_mask):
            frame = sys._getframe()
            while frame is not None and "/src/memtx/" not in frame.f_code.co_filename:
                frame = frame.f_back
            place = "torch" if frame is None else frame.f_code.co_filename.rpartition("/")[2]
            self.found.add((name, place))
        return function(*args, **(kwargs or {}))


def test_a_step_asks_the_device_nothing(model):
    # What is asked is asked of batches and counts on the CPU, before they are moved.
    stack = models.shared(models.dense_read)
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    rows = TextRows(documents=tiny.DOCUMENTS, tokenizer=tokenizer, length=8)
    trainer = replace(
        tiny.trainer(model=model, steps=3),
        objective=Objective(model=stack, terms=[tiny.facts_term()]),
        streams={"facts": Batches(rows=rows, batch_size=2, seed=0, pad_token_id=0)},
        groups=[replace(tiny.all_memory(model), modules=[stack])],
        clip_norm=1.0,
    )
    with Asked() as asked:
        trainer.run()
    assert asked.found == {("_local_scalar_dense", "step.py")}
