"""What docs/performance.md draws, made of the committed results alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plotting import Bars, Lines, Panel, Plot, draw

__all__ = ["PLOTS", "Plot", "draw", "picture"]
Record = dict[str, Any]
Results = dict[str, list[Record]]
MILLISECONDS, GIB = "ms", "peak, GiB"
# From how many times the least the most is drawn over a logarithmic axis.
WIDE = 5.0
READS = {
    "by sequence 16 x 1024, 65 of 4097 x 64 joint bfloat16": "by sequence, 65 chapters, joint",
    "by sequence 16 x 1024, 65 of 4097 x 64 independent bfloat16": "by sequence, independent",
    "by token 16384, 4 of 4096 x 64 joint bfloat16": "by token, 4 chapters, joint",
    "by token 16384, 8 of 4096 x 64 joint bfloat16": "by token, 8 chapters, joint",
}
AXES = {
    "top-k": "chapters read",
    "length": "tokens of a row",
    "bank": "memory tokens of the bank",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A plot: the files it is made of, and how; None where these hold nothing to draw."""

    results: list[str]
    make: Callable[[str, Results], Plot | None]


def picture(name: str, records_of: Callable[[str], dict[str, Any] | None]) -> Plot | None:
    """Make a plot of what was measured; None where nothing was."""
    kind = PLOTS[name]
    found = {result: records_of(result) for result in kind.results}
    results = {result: each["records"] for result, each in found.items() if each is not None}
    return kind.make(name, results) if results else None


def plot_of(name: str, title: str, panels: Iterable[Panel]) -> Plot | None:
    """Give a plot of the panels that show something."""
    shown = [panel for panel in panels if not panel.is_empty]
    return Plot(path=Path(f"performance-{name}.png"), title=title, panels=shown) if shown else None


def values(records: Iterable[Record], field: str) -> dict[str, float]:
    """Give a number of each variant that has it."""
    return {r["variant"]: r[field] for r in records if r.get(field) is not None}


def bars(title: str, label: str, found: dict[str, float]) -> Bars:
    """Give one bar for each name."""
    rows = {name: {"": value} for name, value in found.items()}
    return Bars(title=title, x_label=label, rows=rows, marks={})


def adapter(name: str, results: Results) -> Plot | None:
    """Draw the step of a memory beside PEFT's."""
    records = results["adapter_step"]
    return plot_of(
        name,
        "A training step of an adapter on the 1.5B shape: memtx and PEFT",
        [
            bars("time of a step", MILLISECONDS, values(records, "milliseconds")),
            bars("memory", GIB, values(records, "peak_gib")),
        ],
    )


def reads(name: str, results: Results) -> Plot | None:
    """Draw routed reads beside the naive formulation and others."""
    panels = []
    for case, title in READS.items():
        records = [r for r in results["routed_read"] if r["case"] == case]
        panels.append(bars(title, MILLISECONDS, values(records, "milliseconds")))
        panels.append(bars(title, GIB, values(records, "peak_gib")))
    return plot_of(name, "A routed read, forward and backward, and other ways to do it", panels)


def series(records: Iterable[Record], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    """Give the points of each variant in rising order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        if r.get(x) is not None and r.get(y) is not None:
            found.setdefault(r["variant"], []).append((r[x], r[y]))
    return {variant: sorted(points) for variant, points in found.items()}


def lines(
    title: str, labels: tuple[str, str], found: dict[str, list[tuple[float, float]]]
) -> Lines:
    """Give lines over a logarithmic axis; one point beside lines is a level.

    What grows little is drawn from zero, so that it looks as little as it is.
    """
    grown = {name: points for name, points in found.items() if len(points) > 1}
    levels = {name: points[0][1] for name, points in found.items() if name not in grown}
    heights = [y for points in found.values() for _, y in points]
    return Lines(
        title=title,
        x_label=labels[0],
        y_label=labels[1],
        series=grown or found,
        levels=levels if grown else {},
        log_y=max(heights) > WIDE * min(heights) if heights else False,
    )


def sweep(name: str, results: Results) -> Plot | None:
    """Draw the cost of a read as one size grows."""
    (records,) = results.values()
    panels = []
    for field, label in (("milliseconds", "forward and backward, ms"), ("peak_gib", GIB)):
        for axis, x_label in AXES.items():
            here = [r for r in records if r["axis"] == axis]
            title = here[0]["case"].partition(": ")[2] if here else ""
            panels.append(lines(title, (x_label, label), series(here, "at", field)))
    where = "on a CPU" if name.endswith("cpu") else "on a GPU"
    return plot_of(name, f"A joint read by sequence as one size grows, {where}", panels)


def bank_size(name: str, results: Results) -> Plot | None:
    """Draw steps and tokens as the bank grows."""
    records = results["bank_size"]
    tokens = "memory tokens of the bank"
    panels = []
    for case in dict.fromkeys(r["case"] for r in records if r["num_memory_tokens"] is not None):
        here = [r for r in records if r["case"] == case]
        kind = "token" if " token " in case else "step"
        panels.append(bank_lines(records, case, (tokens, f"{kind}, ms"), "milliseconds"))
        if kind == "step":
            found = series(here, "num_memory_tokens", "update_milliseconds")
            panels.append(lines(case, (tokens, "of it the update, ms"), found))
            panels.append(bank_lines(records, case, (tokens, GIB), "peak_gib"))
    return plot_of(name, "The 371M stack as its bank grows, at an equal number of reads", panels)


def bank_lines(records: list[Record], case: str, labels: tuple[str, str], field: str) -> Lines:
    """Draw the banks of a case, and its control as a level."""
    here = [r for r in records if r["case"] == case and r["num_memory_tokens"] is not None]
    found = lines(case, labels, series(here, "num_memory_tokens", field))
    controls = [r for r in records if r["num_memory_tokens"] is None]
    # A control's case is that of a bank without the routing.
    words = set(case.split())
    alike = [r for r in controls if set(r["case"].split()) <= words and r.get(field) is not None]
    return found.with_levels({r["variant"]: r[field] for r in alike})


def generation(name: str, results: Results) -> Plot | None:
    """Draw the time of a token with memory and without."""
    records = results["generation"]
    panels = []
    for case in dict.fromkeys(r["case"] for r in records):
        here = [r for r in records if r["case"] == case]
        panels.append(bars(case, "a token, ms", values(here, "milliseconds")))
    return plot_of(name, "A generated token on the 1.5B shape, static cache", panels)


def profile(name: str, results: Results) -> Plot | None:
    """Draw what each step spends, and its floor."""
    panels = []
    titles = {False: "training steps", True: "generated tokens"}
    for is_token, title in titles.items():
        here = [
            r
            for r in results["step_profile"]
            if "kernels" in r and ("generate" in r["case"]) is is_token
        ]
        here.sort(key=lambda r: r["case"])
        rows = {f"{r['case']}\n{r['variant']}": r["kernels"] for r in here}
        marks = {f"{r['case']}\n{r['variant']}": r["floor_milliseconds"] for r in here}
        panels.append(Bars(title=title, x_label=MILLISECONDS, rows=rows, marks=marks))
    return plot_of(name, "Where the time of the main steps goes; the line is the floor", panels)


PLOTS = {
    "profile": Kind(results=["step_profile"], make=profile),
    "adapter": Kind(results=["adapter_step"], make=adapter),
    "reads": Kind(results=["routed_read"], make=reads),
    "sweep": Kind(results=["routed_read_sweep"], make=sweep),
    "sweep-cpu": Kind(results=["routed_read_sweep_cpu"], make=sweep),
    "bank-size": Kind(results=["bank_size"], make=bank_size),
    "generation": Kind(results=["generation"], make=generation),
}
