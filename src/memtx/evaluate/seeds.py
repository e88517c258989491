"""Results of several seeds as one."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import final

from memtx.checks import require
from memtx.evaluate.results import EvaluationResult


@final
@dataclass(frozen=True, kw_only=True)
class Spread:
    """A value over seeds.

    Args:
        values: of each seed, in the order of the seeds.

    Source: mean and sample standard deviation (with n - 1).

    Example:
        >>> spread = Spread(values=[0.9, 1.0, 0.8])
        >>> round(spread.mean, 3), round(spread.deviation, 3)
        (0.9, 0.1)
    """

    values: list[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation; None of one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@final
@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """One measurement, repeated with other seeds.

    Args:
        name: what was measured of what.
        seeds: the seeds.
        metrics: the values over seeds, by name.

    Source: memtx's own; made by `over_seeds`.

    Example:
        >>> summary = SeedSummary(
        ...     name="facts", seeds=[0, 1], metrics={"recall": Spread(values=[0.5, 1.0])})
        >>> print(summary.table())
        | result | seeds | metric | mean | deviation | least | most |
        |---|---|---|---|---|---|---|
        | facts | 0, 1 | recall | 0.7500 | 0.3536 | 0.5000 | 1.0000 |
    """

    name: str
    seeds: list[int]
    metrics: Mapping[str, Spread]

    def to_json(self) -> str:
        """Write it as JSON, with each seed's value beside mean and deviation."""
        metrics = {
            name: {**asdict(each), "mean": each.mean, "deviation": each.deviation}
            for name, each in self.metrics.items()
        }
        whole = {"name": self.name, "seeds": self.seeds, "metrics": metrics}
        return json.dumps(whole, indent=2, allow_nan=False)

    def table(self) -> str:
        """Write it as a Markdown table."""
        lines = [
            "| result | seeds | metric | mean | deviation | least | most |",
            "|---|---|---|---|---|---|---|",
        ]
        seeds = ", ".join(map(str, self.seeds))
        for name, each in self.metrics.items():
            deviation = "" if each.deviation is None else f"{each.deviation:.4f}"
            ends = f"{min(each.values):.4f} | {max(each.values):.4f}"
            lines.append(
                f"| {self.name} | {seeds} | {name} | {each.mean:.4f} | {deviation} | {ends} |"
            )
        return "\n".join(lines)


def over_seeds(results: Sequence[EvaluationResult]) -> SeedSummary:
    """Put results together that differ only by seed.

    Args:
        results: at least one, of one name, with distinct seeds and the same metrics.

    Raises:
        ValueError: if they are of several names, a seed is missing or repeated, or metrics differ.
    """
    names = sorted({result.name for result in results})
    seeds = [result.seed for result in results if result.seed is not None]
    kinds = {tuple(result.metrics) for result in results}
    require(
        ok=len(names) == 1 and len(set(seeds)) == len(results) and len(kinds) == 1,
        owner="over_seeds",
        rule="results must be of one name, with distinct seeds and the same metrics",
        got={"names": names, "seeds": [result.seed for result in results]},
        remedy="summarise each measurement by itself",
    )
    return SeedSummary(
        name=names[0],
        seeds=seeds,
        metrics={
            metric: Spread(values=[result.metrics[metric].value for result in results])
            for metric in results[0].metrics
        },
    )
