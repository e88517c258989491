"""Writes docs/performance.md from the committed results: tables, goals, and plots beside the page.

    PYTHONPATH=src:. python3 benchmarks/performance.py

A figure that is not in a file is not on the page. Prose that explains figures stands in
`benchmarks/performance_sections.py` and `benchmarks/performance_goals.py` and holds none itself;
what is drawn, in `benchmarks/performance_plots.py`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.performance_goals import GOALS, REASONS, Goal
from benchmarks.performance_plots import PLOTS, Plot, draw, picture
from benchmarks.performance_sections import SECTIONS, Section

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/performance.md")
# Beside time, memory and ratio, what a record may say, as the table's heading calls it.
EXTRA = {
    "tokens_per_second": "tokens/s",
    "useful_tokens_per_second": "useful tokens/s",
    "useful_share": "useful share",
    "efficiency": "efficiency",
    "update_milliseconds": "update, ms",
    "ratio_to_control": "over control",
    "overhead_percent": "overhead, %",
    "overhead_percent_clipped": "beside clipping, %",
    "outside_percent": "outside, %",
    "floor_milliseconds": "floor, ms",
    "bank_gib": "bank, GiB",
    "resident_gib": "resident, GiB",
}
HEAD = """# Performance

Written by `python benchmarks/performance.py` from `benchmarks/results/`; each file there names
machine, versions and date. Times are medians, forward and backward unless a case says otherwise;
GiB are peaks of what torch allocated. `ratio` is memtx over the rival that the script names, in one
process: below 1, memtx takes less. Run a script again by its first line, or all with `make bench`.
"""


def records_of(name: str) -> dict[str, Any] | None:
    """Read a file of results, or None where it was not measured."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    )
    return found


def shown(value: Any) -> str:
    """Write a number with three figures, or as many as its whole part has."""
    if value is None:
        return "-"
    if not isinstance(value, int | float):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4}f}"


def table(records: list[dict[str, Any]]) -> Iterable[str]:
    """Write records as rows: case, variant, and the numbers that any of them has."""
    extra = [key for key in EXTRA if any(record.get(key) is not None for record in records)]
    part = any("part" in record for record in records)
    heads = ["case", "variant", *(["part"] if part else []), "ms", "GiB", "ratio"]
    yield "| " + " | ".join([*heads, *(EXTRA[key] for key in extra)]) + " |"
    yield "|" + "---|" * (len(heads) + len(extra))
    for record in records:
        cells = [str(record["case"]), f"`{record['variant']}`"]
        cells += [str(record["part"])] if part else []
        numbers = [record.get(key) for key in ("milliseconds", "peak_gib", "ratio", *extra)]
        yield "| " + " | ".join([*cells, *map(shown, numbers)]) + " |"


def grown(records: list[dict[str, Any]]) -> Iterable[str]:
    """Write records of growing sizes as rows, with the milliseconds of each variant beside it."""
    variants = list(dict.fromkeys(record["variant"] for record in records))
    yield "| " + " | ".join(["case", "at", *(f"`{name}`, ms" for name in variants)]) + " |"
    yield "|" + "---|" * (len(variants) + 2)
    points = dict.fromkeys((record["case"], record["at"]) for record in records)
    for case, at in points:
        times = {
            r["variant"]: r["milliseconds"] for r in records if (r["case"], r["at"]) == (case, at)
        }
        yield (
            "| "
            + " | ".join([case, f"{at:,}", *(shown(times.get(name)) for name in variants)])
            + " |"
        )


def spent(records: list[dict[str, Any]]) -> Iterable[str]:
    """Write what a step spends by kind of kernel, and how far it is from its floor."""
    kinds = list(dict.fromkeys(kind for record in records for kind in record["kernels"]))
    kinds = [kind for kind in kinds if kind != "idle"] + ["idle"]
    heads = ["case", "variant", "ms", "floor, ms", "over floor", *kinds]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for record in records:
        time, floor = record["milliseconds"], record["floor_milliseconds"]
        numbers = [time, floor, time / floor, *(record["kernels"].get(kind) for kind in kinds)]
        cells = [record["case"], f"`{record['variant']}`", *map(shown, numbers)]
        yield "| " + " | ".join(cells) + " |"


def section(of: Section) -> Iterable[str]:
    """Write one part of the page."""
    yield f"\n## {of.title}\n"
    yield of.text.strip()
    for name in of.plots:
        plot = picture(name, records_of)
        if plot is not None:
            yield f"\n![{plot.title}]({plot.path.name})"
    for name in of.results:
        found = records_of(name)
        if found is None:
            plots = [plot for plot in of.plots if name in PLOTS[plot].results]
            left_out = ", and what is drawn of it is left out" if plots else ""
            yield f"\n`benchmarks/results/{name}.json`: not measured{left_out}."
            continue
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v is not None)
        yield f"\n`{name}`: {found['machine']}; {versions}; {found['date'][:10]}.\n"
        records = [r for r in found["records"] if r.get("variant") and r.get("case")]
        records = [r for r in records if all(part not in r["case"] for part in of.without)]
        growing = [r for r in records if "at" in r]
        watched = [r for r in records if "idle" in r.get("kernels", {})]
        yield from grown(growing) if growing else spent(watched) if watched else table(records)
        failed = [r for r in records if "error" in r]
        if failed:
            yield ""
        for record in failed:
            where = f"{record['case']}, {record['at']:,}" if "at" in record else record["case"]
            yield f"- {where}, `{record['variant']}`: {record['error'].splitlines()[0][:120]}"


def measured(goal: Goal) -> float | None:
    """Give the figure that a goal is about."""
    found = records_of(goal.results)
    for record in found["records"] if found is not None else []:
        if goal.case in record["case"] and record["variant"] == goal.variant:
            value: float | None = goal.value(record)
            if value is not None:
                return value
    return None


def goals() -> Iterable[str]:
    """Write what was aimed at, and what was reached."""
    yield "\n## Goals\n"
    yield "| work | aimed at | measured | |"
    yield "|---|---|---|---|"
    missed = []
    for goal in GOALS:
        value = measured(goal)
        reached = value is not None and (value <= goal.bound if goal.most else value >= goal.bound)
        if value is not None and not reached:
            missed.append(goal.work)
        verdict = "not measured" if value is None else "reached" if reached else "**not reached**"
        bound = f"{'at most' if goal.most else 'at least'} {shown(goal.bound)} {goal.unit}".strip()
        yield f"| {goal.work} | {bound} | {shown(value)} | {verdict} |"
    for work in missed:
        if work in REASONS:
            yield f"\nNot reached: {work}. {REASONS[work].strip()}"


def page() -> str:
    """Give the whole page."""
    parts = [HEAD.rstrip(), *goals()]
    for each in SECTIONS:
        parts += section(each)
    return "\n".join(parts) + "\n"


def draw_all(folder: Path) -> list[Plot]:
    """Draw every plot that has records, and take away what is drawn no more."""
    plots = [plot for name in PLOTS if (plot := picture(name, records_of)) is not None]
    for path in folder.glob(f"{PAGE.stem}-*.png"):
        if path.name not in {plot.path.name for plot in plots}:
            path.unlink()
    for plot in plots:
        draw(plot, folder / plot.path.name)
    return plots


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE, *(plot.path for plot in draw_all(PAGE.parent)), sep="\n")
