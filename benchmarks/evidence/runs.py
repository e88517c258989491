"""Many short runs: shared out over processes, taken up where they were left, put into one file.

Every process appends a line to a file of its own when a run is done, so that what is killed loses
one run. A run is known by its name; one whose record is there is not run again.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Record, machine, versions

LIBRARIES = ["torch", "transformers", "peft", "memtx"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of all runs a process takes: every `count`-th one from number `index`."""

    index: int
    count: int


def share(text: str) -> Share:
    """Read `i/n`."""
    index, _, count = text.partition("/")
    found = Share(index=int(index), count=int(count))
    if not 0 <= found.index < found.count:
        raise argparse.ArgumentTypeError(f"must be i/n with i from 0 to n - 1, got {text}")
    return found


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is to be done: its name, what it costs beside others, and its values."""

    name: str
    cost: float
    values: Any


def records_in(folder: Path, *, name: str) -> list[Record]:
    """Read what all processes have done, each run once; a line that was cut off is left out."""
    found: dict[str, Record] = {}
    for path in sorted(folder.glob(f"{name}-*-of-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found[record["run"]] = record
    return list(found.values())


def add(folder: Path, record: Record, *, name: str, part: Share) -> None:
    """Append a record, on a line of its own even behind one that was cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{part.index}-of-{part.count}.jsonl"
    text = json.dumps(record, allow_nan=False)
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + text + "\n")


def work(
    jobs: Sequence[Job],
    *,
    do: Callable[[Any], Record],
    folder: Path,
    name: str,
    part: Share,
    budget_seconds: float | None,
) -> int:
    """Do what is left of a process's share while its time lasts, and give how much is left over.

    Jobs come in order of weight, so that what time does not suffice for is what matters least. How
    long one will take is told from those before it; the first is begun in any case.
    """
    begun = time.perf_counter()
    done = {record["run"] for record in records_in(folder, name=name)}
    own = [job for job in jobs[part.index :: part.count] if job.name not in done]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # With every record: lines may be put together elsewhere.
    place = {"machine": machine(device), "versions": versions(LIBRARIES)}
    spent, paid = 0.0, 0.0
    for number, job in enumerate(own):
        now = time.perf_counter()
        expected = job.cost * spent / paid if paid else 0.0
        if budget_seconds is not None and now - begun + expected > budget_seconds:
            print(f"{part}: the time is over; {len(own) - number} runs are left", flush=True)
            return len(own) - number
        record: Record = {"run": job.name, "processes": part.count, **place}
        try:
            record |= do(job.values)
        except FloatingPointError as error:
            # Too high a rate is a result as well.
            record["failed"] = str(error).splitlines()[0]
        wild = [key for key, value in record.items() if _is_wild(value)]
        if wild:
            record = {key: value for key, value in record.items() if key not in wild}
            record["failed"] = f"not finite: {', '.join(wild)}"
        record["whole_seconds"] = round(time.perf_counter() - now, 2)
        add(folder, record, name=name, part=part)
        spent, paid = spent + record["whole_seconds"], paid + job.cost
        print(json.dumps(record), flush=True)
    return 0


def _is_wild(value: Any) -> bool:
    """Tell whether a number is not finite, which JSON cannot hold."""
    if isinstance(value, list):
        return any(map(_is_wild, value))
    return isinstance(value, float) and not math.isfinite(value)


def merge(folder: Path, *, name: str, results: Path, order: Callable[[Record], Any]) -> Path:
    """Write the records of all processes as one file of results."""
    records = sorted(records_in(folder, name=name), key=order)
    machines = list(dict.fromkeys(record.pop("machine") for record in records))
    found = [record.pop("versions") for record in records]
    content = {
        "machine": "; ".join(machines),
        "versions": found[-1] if found else {},
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "records": records,
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def arguments(document: str) -> argparse.ArgumentParser:
    """Give a parser of what all scripts of many runs take."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DATA")
    parser.add_argument("--work", type=Path, required=True, help="folder of the lines of runs")
    parser.add_argument("--shard", type=share, default="0/1", metavar="i/n")
    parser.add_argument("--budget-seconds", type=float, help="begin no run that would end later")
    parser.add_argument("--plan", action="store_true", help="only print what is left to run")
    parser.add_argument("--merge", type=Path, metavar="RESULTS", help="only write the results")
    return parser
