"""Which learning rate to begin with: a short run at ever higher rates, of which nothing stays."""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import final

import torch

from memtx.checks import refusal, require, require_positive
from memtx.train.data_parallel import DataParallel
from memtx.train.groups import check_partition
from memtx.train.loggers import Record
from memtx.train.parallel import SingleProcess
from memtx.train.run import Run
from memtx.train.start import Fresh
from memtx.train.trainer import Trainer

# How far the loss may rise above its lowest before the test ends, and must fall to tell anything.
_RISE, _FALL = 4.0, 1e-3


@final
@dataclass(frozen=True, kw_only=True)
class RateTest:
    """What a test of learning rates found.

    Args:
        records: of each step: `step`, `loss`, `smoothed_loss` (over the steps around it) and
            `learning_rate_factor`.
        factor: what to multiply the rates of all groups by: where the loss fell fastest.
        learning_rates: that, for each group that is trained.

    Source: Smith 2017 (arXiv 1506.01186).

    Example:
        >>> RateTest(records=[], factor=0.5, learning_rates={"bank": 5e-4}).factor
        0.5
    """

    records: list[Record]
    factor: float
    learning_rates: dict[str, float]


def find_learning_rate(trainer: Trainer, *, lowest: float, highest: float, steps: int) -> RateTest:
    """Train for some steps at rates that rise from step to step, and put everything back.

    The rates of all groups rise together, so their ratio is the trainer's. Model, streams and
    random state are afterwards as they were; the test has an optimizer of its own, begins at the
    model's weights whatever the trainer's `start`, and logs, measures and saves nothing. It ends
    early when the loss has risen far or is not finite. Every process has to call this.

    Args:
        trainer: what is to be trained.
        lowest: factor on the groups' learning rates in the first step.
        highest: factor in the last step.
        steps: steps of the test; 100 are usual.

    Raises:
        ValueError: if the bounds are not `0 < lowest < highest`, there are fewer than 10 steps,
            parameters would be sharded, or the loss never falls.
    """
    require_positive(owner="find_learning_rate", sizes={"steps": steps})
    require(
        ok=0.0 < lowest < highest < math.inf and steps >= 10,
        owner="find_learning_rate",
        rule="0 < lowest < highest and steps >= 10 must hold",
        got={"lowest": lowest, "highest": highest, "steps": steps},
        remedy="1e-3, 1e3 and 100 suit rates that are roughly known",
    )
    require(
        ok=isinstance(trainer.parallelism, SingleProcess | DataParallel),
        owner="find_learning_rate",
        rule="parameters must be whole in each process",
        got={"parallelism": type(trainer.parallelism).__name__},
        remedy="test a smaller model of the kind with DataParallel or SingleProcess",
    )
    check_partition(model=trainer.objective, groups=trainer.groups)
    watch = _Watch(losses=[])
    test = replace(
        trainer,
        schedule=_Rising(lowest=lowest, highest=highest, length=steps),
        start=Fresh(),
        steps=steps,
        evaluations=[],
        callbacks=[watch],
        checkpoints=[],
        loggers=[],
    )
    # Too high a rate is what the test is looking for.
    with _restoring(trainer), suppress(FloatingPointError):
        test.run()
    return _found(trainer, losses=watch.losses, test=test)


def _found(trainer: Trainer, *, losses: list[float], test: Trainer) -> RateTest:
    # Around each step, as a mean over those before it alone would find the fall too late.
    reach = max(1, test.steps // 30)
    smoothed = [
        statistics.fmean(losses[max(0, at - reach) : at + reach + 1]) for at in range(len(losses))
    ]
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if not losses or smoothed[0] - smoothed[lowest] <= _FALL * abs(smoothed[0]):
        message = refusal(
            owner="find_learning_rate",
            rule="the loss must fall at some rate",
            got={"losses": [round(loss, 4) for loss in losses[:8]]},
            remedy="begin at a lower factor, end at a higher one, or use larger batches",
        )
        raise ValueError(message)
    factors = [test.schedule.factor(step) for step in range(1, len(losses) + 1)]
    falls = {at: smoothed[at - 1] - smoothed[at] for at in range(1, lowest + 1)}
    best = factors[max(falls, key=falls.__getitem__)]
    rates = {group.name: best * group.learning_rate for group in trainer.groups if not group.frozen}
    records: list[Record] = [
        {"step": at + 1, "loss": loss, "smoothed_loss": even, "learning_rate_factor": factor}
        for at, (loss, even, factor) in enumerate(zip(losses, smoothed, factors, strict=True))
    ]
    return RateTest(records=records, factor=best, learning_rates=rates)


@final
@dataclass(frozen=True, kw_only=True)
class _Rising:
    """A factor that grows by the same ratio from step to step."""

    lowest: float
    highest: float
    length: int

    def factor(self, step: int) -> float:
        ratio = (self.highest / self.lowest) ** (1.0 / (self.length - 1))
        return self.lowest * float(ratio) ** (step - 1)


@final
@dataclass(kw_only=True)
class _Watch:
    """Notes losses, and ends the test when they have risen far above the lowest."""

    losses: list[float]

    def after_step(self, run: Run, record: Record) -> None:
        self.losses.append(record["loss"])
        if record["loss"] > _RISE * min(self.losses) > 0.0 and run.stop is None:
            run.stop = "the loss has risen far above its lowest"

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing is taken up: a test is never resumed."""


@contextmanager
def _restoring(trainer: Trainer) -> Iterator[None]:
    """Put tensors, gradients, streams and random state back at the end of a `with` block."""
    model, device = trainer.objective, trainer.parallelism.device
    trained = [p for group in trainer.groups for p in group.parameters() if not group.frozen]
    held = [*trained, *model.buffers()]
    copies = [tensor.detach().clone() for tensor in held]
    gradients = [p.grad for p in trained]
    states = {name: stream.state_dict() for name, stream in trainer.streams.items()}
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(held, copies, strict=True):
                tensor.copy_(copy)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        for name, stream in trainer.streams.items():
            stream.load_state_dict(states[name])
