"""Many short runs: shared out over processes, taken up where they were left, put into one file.

Processes take the next run that no other has, as far as they come: a lock on a file goes with the
process that holds it. Each appends a line to a file of its own when a run is done, so that what is
killed loses one run. A run is known by its name; one whose record is there is not run again.
"""

import argparse
import fcntl
import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Record, machine, versions

LIBRARIES = ["torch", "transformers", "peft", "memtx"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of `count` processes one is: it names the file of its lines."""

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


@dataclass(kw_only=True)
class Pace:
    """When a process must have ended, and how long its runs took so far for what they cost."""

    # Of `time.monotonic`; None is never.
    until: float | None
    spent: float
    paid: float

    def has_time_for(self, job: Job) -> bool:
        """Tell whether a run would end in time; of the first nothing is known."""
        expected = job.cost * self.spent / self.paid if self.paid else 0.0
        return self.until is None or time.monotonic() + expected <= self.until

    @property
    def is_over(self) -> bool:
        return self.until is not None and time.monotonic() > self.until


@contextmanager
def claim(folder: Path, run: str) -> Iterator[Path | None]:
    """Hold a run while it is done, and give the file that says so; None where another holds it."""
    held = folder / "claims"
    held.mkdir(parents=True, exist_ok=True)
    path = held / hashlib.sha256(run.encode()).hexdigest()[:24]
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield path


def work(
    jobs: Sequence[Job],
    *,
    do: Callable[[Any], Record],
    folder: Path,
    name: str,
    part: Share,
    pace: Pace,
) -> int:
    """Do what no other process does while time lasts, and give how many runs have no record then.

    Jobs come in order of weight, so that what time does not suffice for is what matters least. A
    run that breaks is told and left to nobody.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # With every record: lines may be put together elsewhere.
    place = {"machine": machine(device), "versions": versions(LIBRARIES)}
    for job in jobs:
        if job.name in _done(folder, name=name):
            continue
        if not pace.has_time_for(job):
            break
        with claim(folder, job.name) as held:
            broke = held is None or held.read_bytes()
            if held is None or broke or job.name in _done(folder, name=name):
                continue
            begun = time.monotonic()
            record = _tried(job, do=do, held=held)
            if record is None:
                continue
            took = round(time.monotonic() - begun, 2)
            known = {"run": job.name, "processes": part.count, **place}
            record = known | record | {"whole_seconds": took}
            add(folder, record, name=name, part=part)
        pace.spent, pace.paid = pace.spent + took, pace.paid + job.cost
        print(json.dumps(record), flush=True)
    done = _done(folder, name=name)
    left = sum(job.name not in done for job in jobs)
    print(f"{part.index}/{part.count}: {left} of {len(jobs)} runs have no record", flush=True)
    return left


def _done(folder: Path, *, name: str) -> set[str]:
    return {record["run"] for record in records_in(folder, name=name)}


def _tried(job: Job, *, do: Callable[[Any], Record], held: Path) -> Record | None:
    """Do a run; None, and a word in the file that holds it, where that broke."""
    try:
        record = do(job.values)
    except FloatingPointError as error:
        # Too high a rate is a result as well.
        return {"failed": str(error).splitlines()[0]}
    except Exception:
        # One run must not take down the others, in this process or in those that would retry it.
        traceback.print_exc()
        held.write_text(f"{job.name}\n{traceback.format_exc()}", encoding="utf-8")
        return None
    wild = [key for key, value in record.items() if _is_wild(value)]
    if wild:
        record = {key: value for key, value in record.items() if key not in wild}
        record["failed"] = f"not finite: {', '.join(wild)}"
    return record


def broken(folder: Path) -> list[str]:
    """Name the runs that broke: remove the folder `claims` to have them tried again."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "claims").glob("*"))]
    return [text.splitlines()[0] for text in texts if text]


def until_all(
    jobs: Sequence[Job],
    *,
    do: Callable[[Any], Record],
    folder: Path,
    name: str,
    part: Share,
    pace: Pace,
) -> bool:
    """Work, then wait for the other processes; tell whether all is done but what broke."""
    while True:
        work(jobs, do=do, folder=folder, name=name, part=part, pace=pace)
        over = _done(folder, name=name) | set(broken(folder))
        if all(job.name in over for job in jobs):
            return True
        if pace.is_over:
            return False
        time.sleep(1.0)


def pace_of(budget_seconds: float | None) -> Pace:
    """Begin to count a process's time."""
    until = None if budget_seconds is None else time.monotonic() + budget_seconds
    return Pace(until=until, spent=0.0, paid=0.0)


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
    parser.add_argument(
        "--budget-seconds", type=float, help="of this process: begin no run that would end later"
    )
    parser.add_argument("--plan", action="store_true", help="only print what is left to run")
    parser.add_argument("--merge", type=Path, metavar="RESULTS", help="only write the results")
    return parser
