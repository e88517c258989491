"""Callbacks that end a run: when it learns no more, or when its loss explodes."""

import math
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch

from memtx.checks import require, require_positive
from memtx.train.loggers import Record
from memtx.train.run import Run


@runtime_checkable
class Better(Protocol):
    """Tells which of two numbers is better."""

    def than(self, best: float) -> float:
        """Give the bound that a number has to pass to be better than the best so far."""

    def passes(self, number: float, bound: float) -> bool:
        """Tell whether a number is beyond a bound."""


@final
@dataclass(frozen=True, kw_only=True)
class Lower:
    """The lower number is the better one: losses.

    Args:
        by: at least by so much.

    Raises:
        ValueError: if `by` is negative or not finite.

    Source: memtx's own.

    Example:
        >>> Lower(by=0.1).passes(0.85, Lower(by=0.1).than(1.0))
        True
    """

    by: float

    def __post_init__(self) -> None:
        _check_by(self, by=self.by)

    def than(self, best: float) -> float:
        """Give the bound below the best so far.

        Args:
            best: the best so far.
        """
        return best - self.by

    def passes(self, number: float, bound: float) -> bool:
        """Tell whether a number is below a bound.

        Args:
            number: the number.
            bound: the bound.
        """
        return number < bound


@final
@dataclass(frozen=True, kw_only=True)
class Higher:
    """The higher number is the better one: recall.

    Args:
        by: at least by so much.

    Raises:
        ValueError: if `by` is negative or not finite.

    Source: memtx's own.

    Example:
        >>> Higher(by=0.1).passes(1.05, Higher(by=0.1).than(1.0))
        False
    """

    by: float

    def __post_init__(self) -> None:
        _check_by(self, by=self.by)

    def than(self, best: float) -> float:
        """Give the bound above the best so far.

        Args:
            best: the best so far.
        """
        return best + self.by

    def passes(self, number: float, bound: float) -> bool:
        """Tell whether a number is above a bound.

        Args:
            number: the number.
            bound: the bound.
        """
        return number > bound


def _check_by(better: object, *, by: float) -> None:
    require(
        ok=0.0 <= by < math.inf,
        owner=better,
        rule="by must be finite and not negative",
        got={"by": by},
        remedy="pass 0.0 to count every gain",
    )


@final
class EarlyStopping:
    """Ends a run when a number has not got better for some measures.

    Looks at each record that has the number: with one of an evaluation, the run ends at that very
    step. In several processes it is their mean. A run that it ended is done: resumed, it takes no
    step, unless with more patience.

    Args:
        number: its name in the records, such as `recall`.
        better: `Lower(by=...)` or `Higher(by=...)`.
        patience: how many measures may bring nothing better.

    Raises:
        ValueError: if `patience` is below 1.

    Source: Prechelt 1998, "Early stopping, but when?"

    Example:
        >>> EarlyStopping(number="text_loss", better=Lower(by=0.0), patience=3).best is None
        True
    """

    def __init__(self, *, number: str, better: Better, patience: int) -> None:
        require_positive(owner=self, sizes={"patience": patience})
        self.number = number
        self.better = better
        self.patience = patience
        self.best: float | None = None
        self.since = 0

    def after_step(self, run: Run, record: Record) -> None:
        """Look at the number, if it was measured.

        Args:
            run: the run.
            record: the step's numbers.
        """
        if self.number in record:
            self._count(run, number=self._mean(run, record[self.number]))
        elif record["step"] == run.steps and self.best is None and not self.since:
            warnings.warn(
                f"EarlyStopping: no record had the number '{self.number}' in {run.steps} steps.",
                stacklevel=2,
            )

    def _count(self, run: Run, *, number: float) -> None:
        first = self.best is None and math.isfinite(number)
        if first or (
            self.best is not None and self.better.passes(number, self.better.than(self.best))
        ):
            self.best, self.since = number, 0
            return
        self.since += 1
        self._end(run)

    def _end(self, run: Run) -> None:
        if self.since >= self.patience and run.stop is None:
            run.stop = (
                f"{self.number} has not got better than {self.best} for {self.since} measures"
            )

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Let a run that was ended stay ended when it is started again.

        Args:
            run: the run, at its start.
        """
        self._end(run)
        yield

    def _mean(self, run: Run, number: float) -> float:
        # Rounding may differ between processes, but they must end together.
        total = run.parallelism.all_sum(torch.tensor([number], dtype=torch.float64))
        return float(total) / run.parallelism.world_size

    def is_urgent(self, step: int) -> bool:
        """Tell that it can be told of any step later.

        Args:
            step: not used.
        """
        return False

    def state_dict(self) -> dict[str, object]:
        """Give the best number so far and the measures since."""
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both up again.

        Args:
            state: what `state_dict` gave.
        """
        self.best, self.since = state["best"], state["since"]


@final
class ExplodingLoss:
    """Ends a run with an error when its loss jumps, before the jump changes the parameters.

    Args:
        factor: a loss above so many times the median of the last ones is a jump.
        window: over how many steps the median is; earlier steps are not looked at.

    Raises:
        ValueError: if `factor` is not above 1 or `window` is below 1.

    Source: memtx's own; PaLM (Chowdhery et al. 2022, section 5.1) restarts behind such batches.

    Example:
        >>> guard = ExplodingLoss(factor=3.0, window=1)
        >>> guard.losses.append(2.0)
        >>> guard.trouble({"loss": 7.0})
        'the loss must stay below 3.0 times its median over the last 1 steps, 2'
    """

    def __init__(self, *, factor: float, window: int) -> None:
        require_positive(owner=self, sizes={"window": window})
        require(
            ok=1.0 < factor < math.inf,
            owner=self,
            rule="factor must be above 1 and finite",
            got={"factor": factor},
            remedy="3.0 lets the noise of usual batches pass",
        )
        self.factor = factor
        self.window = window
        self.losses: list[float] = []

    def trouble(self, record: Record) -> str | None:
        """Tell whether the loss has jumped.

        Args:
            record: the step's numbers.
        """
        if len(self.losses) < self.window:
            return None
        usual = statistics.median(self.losses)
        if not record["loss"] > self.factor * usual > 0.0:
            return None
        return (
            f"the loss must stay below {self.factor} times its median over the last "
            f"{self.window} steps, {usual:.4g}"
        )

    def after_step(self, run: Run, record: Record) -> None:
        """Note the loss.

        Args:
            run: not used.
            record: the step's numbers.
        """
        self.losses = [*self.losses, record["loss"]][-self.window :]

    def state_dict(self) -> dict[str, object]:
        """Give the last losses."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again.

        Args:
            state: what `state_dict` gave.
        """
        self.losses = list(state["losses"])
