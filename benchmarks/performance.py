"""Writes docs/performance.md from the committed results: a table for each file, and the goals.

    PYTHONPATH=src:. python3 benchmarks/performance.py

A figure that is not in a file is not on the page. Prose that explains figures stands in
`benchmarks/performance_sections.py` and holds none itself.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.performance_sections import GOALS, SECTIONS, Goal, Section

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


def section(of: Section) -> Iterable[str]:
    """Write one part of the page."""
    yield f"\n## {of.title}\n"
    yield of.text.strip()
    for name in of.results:
        found = records_of(name)
        if found is None:
            yield f"\n`benchmarks/results/{name}.json`: not measured."
            continue
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v is not None)
        yield f"\n`{name}`: {found['machine']}; {versions}; {found['date'][:10]}.\n"
        records = [r for r in found["records"] if r.get("variant") and r.get("case")]
        yield from table([r for r in records if all(part not in r["case"] for part in of.without)])


def measured(goal: Goal) -> float | None:
    """Give the figure that a goal is about."""
    found = records_of(goal.results)
    for record in found["records"] if found is not None else []:
        if goal.case in record["case"] and record["variant"] == goal.variant:
            value: float | None = goal.value(record)
            return value
    return None


def goals() -> Iterable[str]:
    """Write what was aimed at, and what was reached."""
    yield "\n## Goals\n"
    yield "| work | aimed at | measured | |"
    yield "|---|---|---|---|"
    for goal in GOALS:
        value = measured(goal)
        reached = value is not None and (value <= goal.bound if goal.most else value >= goal.bound)
        verdict = "not measured" if value is None else "reached" if reached else "**not reached**"
        bound = f"{'at most' if goal.most else 'at least'} {shown(goal.bound)} {goal.unit}".strip()
        yield f"| {goal.work} | {bound} | {shown(value)} | {verdict} |"


def page() -> str:
    """Give the whole page."""
    parts = [HEAD.rstrip(), *goals()]
    for each in SECTIONS:
        parts += section(each)
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
