"""Learning-rate schedules: a factor on every learning rate, by the number of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from memtx.checks import require


@runtime_checkable
class Schedule(Protocol):
    """Gives each step its factor."""

    @property
    def length(self) -> int | None:
        """How many steps it is made for; None, for any number."""

    def factor(self, step: int) -> float:
        """Give the factor of a step, numbered from 1."""


def _check(schedule: object, *, parts: Mapping[str, int], total_steps: int, floor: float) -> None:
    """Require that the parts fit into the whole with a step left over, and the floor to [0, 1]."""
    got = {**parts, "total_steps": total_steps, "floor": floor}
    require(
        ok=all(steps >= 0 for steps in parts.values())
        and sum(parts.values()) < total_steps
        and 0.0 <= floor <= 1.0,
        owner=schedule,
        rule=f"0 <= {' + '.join(parts)} < total_steps and floor in [0, 1] must hold",
        got=got,
        remedy="choose shorter parts or another floor",
    )


def _share(step: int, *, start: int, end: int) -> float:
    """Give how much of the way from `start` to `end` is done, in [0, 1]."""
    return min(1.0, max(0.0, (step - start) / (end - start)))


@final
@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Learning-rate factor: linear from 0 to 1, then a half cosine down to a floor.

    Args:
        warmup_steps: steps of the linear part.
        total_steps: step at which the floor is reached.
        floor: the factor at the end.

    Raises:
        ValueError: if the warm-up is not shorter than the whole, or the floor is outside [0, 1].

    Source: SGDR without restarts (Loshchilov and Hutter 2017, arXiv 1608.03983).

    Example:
        >>> schedule = WarmupCosine(warmup_steps=2, total_steps=4, floor=0.0)
        >>> [round(schedule.factor(step), 3) for step in (1, 2, 3, 4)]
        [0.5, 1.0, 0.5, 0.0]
    """

    warmup_steps: int
    total_steps: int
    floor: float

    def __post_init__(self) -> None:
        parts = {"warmup_steps": self.warmup_steps}
        _check(self, parts=parts, total_steps=self.total_steps, floor=self.floor)

    @property
    def length(self) -> int:
        """`total_steps`."""
        return self.total_steps

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        done = _share(step, start=self.warmup_steps, end=self.total_steps)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@final
@dataclass(frozen=True, kw_only=True)
class WarmupLinear:
    """Learning-rate factor: linear from 0 to 1, then linear down to a floor.

    Args:
        warmup_steps: steps of the rise.
        total_steps: step at which the floor is reached.
        floor: the factor at the end.

    Raises:
        ValueError: if the warm-up is not shorter than the whole, or the floor is outside [0, 1].

    Source: BERT's schedule (Devlin et al. 2019, arXiv 1810.04805).

    Example:
        >>> schedule = WarmupLinear(warmup_steps=2, total_steps=6, floor=0.2)
        >>> [round(schedule.factor(step), 3) for step in (1, 2, 4, 6)]
        [0.5, 1.0, 0.6, 0.2]
    """

    warmup_steps: int
    total_steps: int
    floor: float

    def __post_init__(self) -> None:
        parts = {"warmup_steps": self.warmup_steps}
        _check(self, parts=parts, total_steps=self.total_steps, floor=self.floor)

    @property
    def length(self) -> int:
        """`total_steps`."""
        return self.total_steps

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        done = _share(step, start=self.warmup_steps, end=self.total_steps)
        return 1.0 - (1.0 - self.floor) * done


@final
@dataclass(frozen=True, kw_only=True)
class WarmupConstant:
    """Learning-rate factor: linear from 0 to 1, then 1 for as long as the run takes.

    Args:
        warmup_steps: steps of the linear part.

    Raises:
        ValueError: if the warm-up is negative.

    Source: the simplest there is; runs of any length share it.

    Example:
        >>> [WarmupConstant(warmup_steps=2).factor(step) for step in (1, 2, 1000)]
        [0.5, 1.0, 1.0]
    """

    warmup_steps: int

    def __post_init__(self) -> None:
        require(
            ok=self.warmup_steps >= 0,
            owner=self,
            rule="warmup_steps must not be negative",
            got={"warmup_steps": self.warmup_steps},
            remedy="pass 0 for a constant from the first step on",
        )

    @property
    def length(self) -> None:
        """None: it fits a run of any length."""
        return

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        return step / self.warmup_steps if step < self.warmup_steps else 1.0


@final
@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Learning-rate factor: linear from 0 to 1, 1 until shortly before the end, then down fast.

    With `u` the share of the decay that is done, the factor falls as `1 - sqrt(u)` to the floor. A
    run may be cut before the decay and continued to any length.

    Args:
        warmup_steps: steps of the linear part.
        decay_steps: steps of the fall, the last of the run.
        total_steps: step at which the floor is reached.
        floor: the factor at the end.

    Raises:
        ValueError: if warm-up and decay do not leave a step between them, or the floor is outside
            [0, 1].

    Source: MiniCPM (Hu et al. 2024, arXiv 2404.06395) with the decay of Haegele et al. 2024
    (arXiv 2405.18392).

    Example:
        >>> schedule = WarmupStableDecay(warmup_steps=2, decay_steps=4, total_steps=10, floor=0.0)
        >>> [round(schedule.factor(step), 3) for step in (1, 2, 6, 7, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    warmup_steps: int
    decay_steps: int
    total_steps: int
    floor: float

    def __post_init__(self) -> None:
        parts = {"warmup_steps": self.warmup_steps, "decay_steps": self.decay_steps}
        _check(self, parts=parts, total_steps=self.total_steps, floor=self.floor)
        require(
            ok=self.decay_steps >= 1,
            owner=self,
            rule="decay_steps must be at least 1",
            got={"decay_steps": self.decay_steps},
            remedy="use WarmupConstant for a schedule without a decay",
        )

    @property
    def length(self) -> int:
        """`total_steps`."""
        return self.total_steps

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        start = self.total_steps - self.decay_steps
        done = _share(step, start=start, end=self.total_steps)
        return self.floor + (1.0 - self.floor) * (1.0 - math.sqrt(done))


@final
@dataclass(frozen=True, kw_only=True)
class DelayedCosine:
    """Learning-rate factor: linear from 0 to 1, 1 for a while, then a half cosine to a floor.

    Args:
        warmup_steps: steps of the linear part.
        delay_steps: steps at 1 before the fall begins.
        total_steps: step at which the floor is reached.
        floor: the factor at the end.

    Raises:
        ValueError: if warm-up and delay are not shorter than the whole, or the floor is outside
            [0, 1].

    Source: `WarmupCosine` with its fall delayed.

    Example:
        >>> schedule = DelayedCosine(warmup_steps=2, delay_steps=4, total_steps=10, floor=0.0)
        >>> [round(schedule.factor(step), 3) for step in (1, 2, 6, 8, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    warmup_steps: int
    delay_steps: int
    total_steps: int
    floor: float

    def __post_init__(self) -> None:
        parts = {"warmup_steps": self.warmup_steps, "delay_steps": self.delay_steps}
        _check(self, parts=parts, total_steps=self.total_steps, floor=self.floor)

    @property
    def length(self) -> int:
        """`total_steps`."""
        return self.total_steps

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        start = self.warmup_steps + self.delay_steps
        done = _share(step, start=start, end=self.total_steps)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@final
@dataclass(frozen=True, kw_only=True)
class DelayedLinear:
    """Learning-rate factor: linear from 0 to 1, 1 for a while, then linear down to a floor.

    Args:
        warmup_steps: steps of the rise.
        delay_steps: steps at 1 before the fall begins.
        total_steps: step at which the floor is reached.
        floor: the factor at the end.

    Raises:
        ValueError: if warm-up and delay are not shorter than the whole, or the floor is outside
            [0, 1].

    Source: `WarmupLinear` with its fall delayed: the trapezoid.

    Example:
        >>> schedule = DelayedLinear(warmup_steps=2, delay_steps=4, total_steps=10, floor=0.2)
        >>> [round(schedule.factor(step), 3) for step in (1, 2, 6, 8, 10)]
        [0.5, 1.0, 1.0, 0.6, 0.2]
    """

    warmup_steps: int
    delay_steps: int
    total_steps: int
    floor: float

    def __post_init__(self) -> None:
        parts = {"warmup_steps": self.warmup_steps, "delay_steps": self.delay_steps}
        _check(self, parts=parts, total_steps=self.total_steps, floor=self.floor)

    @property
    def length(self) -> int:
        """`total_steps`."""
        return self.total_steps

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        start = self.warmup_steps + self.delay_steps
        done = _share(step, start=start, end=self.total_steps)
        return 1.0 - (1.0 - self.floor) * done
