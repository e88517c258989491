"""Plots of the evidence, from records alone; matplotlib is loaded when one is drawn."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.records import Record

COLORS = {
    "memory-dense": "#0072B2",
    "memory-sharp": "#009E73",
    "memory-routed": "#56B4E9",
    "memory-sparse": "#7A5195",
    "lora": "#D55E00",
    "prefix": "#B8860B",
    "full": "#444444",
}
STACKS = ["#444444", "#0072B2", "#009E73", "#D55E00", "#7A5195"]
# Rises below this are drawn at it: a logarithm has no zero.
LEAST = 1e-4


def pyplot() -> Any:
    """Load matplotlib so that it needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def spread(values: list[float]) -> tuple[float, float]:
    """Give mean and sample standard deviation, 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def grouped(records: Iterable[Record], *, by: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Put records together, in the order in which their keys come first."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(by(record), []).append(record)
    return found


def finish(figure: Any, path: Path) -> None:
    """Draw what all plots have, and write one."""
    for axes in figure.axes:
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def recall_against_forgetting(records: list[Record], *, title: str, path: Path) -> None:
    """Draw each method's recall over what it cost: filled where protected, hollow where not."""
    figure, axes = pyplot().subplots(figsize=(8.0, 5.0))
    seen = grouped(records, by=lambda r: (r["method"], r["protected"]))
    for (method, protected), runs in seen.items():
        rise, wide = spread([max(LEAST, r["background_loss_rise"]) for r in runs])
        recall, high = spread([r["recall"] for r in runs])
        if len(runs) > 1:
            # A bar must not reach below zero on a logarithm.
            across = [[min(wide, rise - LEAST / 2)], [wide]]
            axes.errorbar(
                rise, recall, xerr=across, yerr=high, color=COLORS[method], capsize=3, linewidth=1
            )
        axes.plot(
            rise,
            recall,
            marker="o" if method.startswith("memory") else "s",
            color=COLORS[method],
            markerfacecolor=COLORS[method] if protected else "none",
            # Hollow ones are larger and on top, so that none hides another.
            zorder=2 if protected else 3,
            markersize=8 if protected else 11,
            linestyle="none",
            label=f"{method}, {'protected' if protected else 'as users run it'}",
        )
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("rise of the loss on background text, nats per token (less is better)")
    axes.set_ylabel("facts recalled (more is better)")
    axes.set_title(title)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    finish(figure, path)


def forgetting_over_batches(records: list[Record], *, title: str, path: Path) -> None:
    """Draw what is left of the first batch, and of all taught so far, after each batch."""
    plt = pyplot()
    figure, both = plt.subplots(1, 2, figsize=(11.0, 4.5), sharey=True)
    seen = grouped(records, by=lambda r: (r["method"], r["protected"]))
    for (method, protected), runs in seen.items():
        count = min(len(r["recall_after"]) for r in runs)
        numbers = list(range(1, count + 1))
        first = [statistics.fmean(r["recall_after"][n - 1][0] for r in runs) for n in numbers]
        every = [
            statistics.fmean(statistics.fmean(r["recall_after"][n - 1]) for r in runs)
            for n in numbers
        ]
        for axes, values in zip(both, (first, every), strict=True):
            axes.plot(
                numbers,
                values,
                color=COLORS[method],
                linestyle="-" if protected else ":",
                marker="o" if method.startswith("memory") else "s",
                markersize=4,
                label=f"{method}, {'protected' if protected else 'as users run it'}",
            )
    for axes, name in zip(both, ("the first batch", "all batches so far"), strict=True):
        axes.set_xlabel("batches taught")
        axes.set_title(f"{title}: {name}", fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
    both[0].set_ylabel("facts recalled")
    both[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    finish(figure, path)


def loss_against_flops(records: list[Record], *, title: str, path: Path) -> None:
    """Draw held-out loss over arithmetic and over the bank's size: mean and spread of the seeds."""
    figure, (over, beside) = pyplot().subplots(1, 2, figsize=(11.0, 4.5), width_ratios=[3, 2])
    seen = grouped(records, by=lambda r: r["method"])
    for number, (method, runs) in enumerate(seen.items()):
        color = STACKS[number % len(STACKS)]
        points = min(len(r["curve"]) for r in runs)
        flops = [runs[0]["curve"][n]["flops"] for n in range(points)]
        pairs = [spread([r["curve"][n]["held_out"] for r in runs]) for n in range(points)]
        low, high = [m - w for m, w in pairs], [m + w for m, w in pairs]
        means = [mean for mean, _ in pairs]
        over.plot(flops, means, color=color, marker="o", markersize=3, label=method)
        over.fill_between(flops, low, high, color=color, alpha=0.2, linewidth=0)
        end, wide = spread([r["held_out"] for r in runs])
        beside.errorbar(number, end, yerr=wide, color=color, fmt="o", markersize=8, capsize=4)
    over.set_xlabel("FLOPs of training")
    over.set_ylabel("held-out loss, nats per token")
    over.set_title(title, fontsize=10)
    over.legend(fontsize=9, frameon=False)
    beside.set_title("at the end, by memory tokens of the bank", fontsize=10)
    kinds = [(method.partition("-")[0], runs[0]["bank_tokens"]) for method, runs in seen.items()]
    beside.set_xticks(range(len(kinds)), [f"{kind}\n{tokens:,}" for kind, tokens in kinds])
    beside.set_xlim(-0.5, len(kinds) - 0.5)
    finish(figure, path)
