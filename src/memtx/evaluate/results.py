"""Measured values with their uncertainty, and results that can be kept and shown."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from memtx.checks import require, require_positive


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval.

    Args:
        low: its lower end.
        high: its upper end.
        method: `wilson`, `bootstrap`, or `normal` of a standard error that another tool told.

    Source: memtx's own.

    Example:
        >>> Interval(low=0.1, high=0.2, method="wilson").method
        'wilson'
    """

    low: float
    high: float
    method: str


@final
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measured value.

    Args:
        value: the value.
        num_items: over how many items it was taken.
        interval: its confidence interval; None where there is none.

    Raises:
        ValueError: if the value is not finite.

    Source: memtx's own.

    Example:
        >>> Metric(value=0.5, num_items=10, interval=None).value
        0.5
    """

    value: float
    num_items: int
    interval: Interval | None

    def __post_init__(self) -> None:
        require(
            ok=math.isfinite(self.value),
            owner=self,
            rule="a value must be finite",
            got={"value": self.value, "num_items": self.num_items},
            remedy="look for overflow in the model",
        )


@final
@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How intervals are made: Wilson's for shares of items, percentile bootstrap for the rest.

    Args:
        level: share of intervals that hold the true value, such as 0.95.
        resamples: how often the bootstrap draws as many items as there are, with replacement.
        seed: of these draws.

    Raises:
        ValueError: if `level` does not lie in (0, 1), or `resamples` is below 1.

    Source: Wilson 1927 (score interval); Efron 1979 (bootstrap).

    Example:
        >>> share = Confidence(level=0.95, resamples=100, seed=0).share([True] * 9 + [False])
        >>> share.value, round(share.interval.low, 3), round(share.interval.high, 3)
        (0.9, 0.596, 0.982)
    """

    level: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        require_positive(owner=self, sizes={"resamples": self.resamples})
        require(
            ok=0.0 < self.level < 1.0,
            owner=self,
            rule="level must lie between 0 and 1",
            got={"level": self.level},
            remedy="pass 0.95 for 95 percent",
        )

    def share(self, flags: Sequence[bool]) -> Metric:
        """Give the share of items that are true, with Wilson's interval.

        Args:
            flags: whether each item is.

        Raises:
            ValueError: if there are no items.
        """
        self._require_items(len(flags))
        count, value = len(flags), sum(flags) / len(flags)
        z = statistics.NormalDist().inv_cdf(0.5 + self.level / 2)
        center = (value + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count)
        half *= math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
        interval = Interval(
            low=max(0.0, center - half), high=min(1.0, center + half), method="wilson"
        )
        return Metric(value=value, num_items=count, interval=interval)

    def mean(self, values: Sequence[float]) -> Metric:
        """Give the mean of items: a share where all are 0 or 1, else with a bootstrap interval.

        Args:
            values: of each item.

        Raises:
            ValueError: if there are no items.
        """
        if all(value in (0.0, 1.0) for value in values):
            return self.share([bool(value) for value in values])
        return self.ratio(values, [1.0] * len(values), of=float)

    def ratio(
        self,
        totals: Sequence[float],
        counts: Sequence[float],
        *,
        of: Callable[[float], float],
    ) -> Metric:
        """Give a function of the sum of totals over the sum of counts, drawing items with both.

        Args:
            totals: of each item, such as nats of a window.
            counts: of each item, such as tokens of a window.
            of: makes the value of the ratio, such as `math.exp` for perplexity.

        Raises:
            ValueError: if there are no items.
        """
        self._require_items(len(totals))
        sums = torch.tensor([totals, counts], dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = []
        for _ in range(self.resamples):
            picked = torch.randint(sums.shape[1], (sums.shape[1],), generator=generator)
            total, count = sums[:, picked].sum(dim=1).tolist()
            drawn.append(of(total / count))
        ends = torch.tensor([0.5 - self.level / 2, 0.5 + self.level / 2], dtype=torch.float64)
        low, high = torch.tensor(drawn, dtype=torch.float64).quantile(ends).tolist()
        return Metric(
            value=of(sum(totals) / sum(counts)),
            num_items=len(totals),
            interval=Interval(low=low, high=high, method="bootstrap"),
        )

    def _require_items(self, count: int) -> None:
        require(
            ok=count > 0,
            owner=self,
            rule="a value must be taken over at least one item",
            got={"items": count},
            remedy="measure something first",
        )


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What was measured of one model, once.

    Args:
        name: what was measured of what.
        metrics: the values by name.
        seed: the seed of what was measured, such as of a training; None where there is none.
        details: anything else that JSON can hold: sizes, paths, versions.

    Raises:
        ValueError: if `details` cannot be written as JSON.

    Source: memtx's own.

    Example:
        >>> metric = Confidence(level=0.95, resamples=100, seed=0).share([True, False])
        >>> result = EvaluationResult(
        ...     name="facts", metrics={"recall": metric}, seed=0, details={"facts": 2})
        >>> EvaluationResult.from_json(result.to_json()) == result
        True
        >>> print(table([result]))
        | result | seed | metric | value | interval | items |
        |---|---|---|---|---|---|
        | facts | 0 | recall | 0.5000 | 0.0945 to 0.9055 (wilson) | 2 |
    """

    name: str
    metrics: Mapping[str, Metric]
    seed: int | None
    details: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            same = json.loads(json.dumps(dict(self.details), allow_nan=False)) == dict(self.details)
        except (TypeError, ValueError):
            same = False
        require(
            ok=same,
            owner=self,
            rule="details must be what JSON can hold",
            got={"details": dict(self.details)},
            remedy="write paths, dtypes and the like as text, and tuples as lists",
        )

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "EvaluationResult":
        """Read what `to_json` wrote.

        Args:
            text: the JSON.
        """
        held = json.loads(text)
        metrics = {
            name: Metric(
                value=each["value"],
                num_items=each["num_items"],
                interval=None if each["interval"] is None else Interval(**each["interval"]),
            )
            for name, each in held.pop("metrics").items()
        }
        return cls(metrics=metrics, **held)


def table(results: Sequence[EvaluationResult]) -> str:
    """Write results as one Markdown table.

    Args:
        results: the results.
    """
    lines = ["| result | seed | metric | value | interval | items |", "|---|---|---|---|---|---|"]
    for result in results:
        seed = "" if result.seed is None else result.seed
        for name, metric in result.metrics.items():
            ends = metric.interval
            shown = "" if ends is None else f"{ends.low:.4f} to {ends.high:.4f} ({ends.method})"
            cells = (result.name, seed, name, f"{metric.value:.4f}", shown, metric.num_items)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
