"""Ten batches of a hundred facts, one after another: what is left of the first when the last is in.

    export PYTHONPATH=src:.
    python3 -m benchmarks.evidence.continual --data DATA --base runs/evidence/base \\
        --work runs/evidence/injection --shard 0/1

Methods, rates and protection are those that the sweep of benchmarks.evidence.injection chose, whose
lines lie in the same folder. Nothing of an earlier batch is shown again. `memory-sparse` writes
slots of its own for every batch, and what reads them is learned with the first batch alone.
"""

import argparse
import functools
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.evidence import injection
from benchmarks.evidence.injection import RATES, SEEDS, chosen, prepared, warm
from benchmarks.evidence.lessons import Bench, Lesson, asked, bench_of, forgotten, particular, teach
from benchmarks.evidence.methods import Rates
from benchmarks.evidence.runs import Job, arguments, merge, records_in, work
from benchmarks.records import Record

NAME = "evidence_continual"
BATCHES, FACTS, STEPS = 10, 100, 150


@dataclass(frozen=True, kw_only=True)
class Run:
    """Batches taught one after another."""

    method: str
    protected: bool
    rate: float
    locality_weight: float
    seed: int
    batches: int
    facts: int
    steps: int

    def named(self, base: str) -> Job:
        """Give it as a job."""
        protection = "protected" if self.protected else "plain"
        size = f"{self.batches} x {self.facts} steps {self.steps}"
        return Job(
            name=f"{base} {size} {self.method} seed {self.seed} {protection}",
            cost=self.batches * self.steps * (2.5 if self.protected else 1.0),
            values=self,
        )


def runs(asked_for: argparse.Namespace, records: list[Record]) -> list[Run]:
    """List the runs."""
    found = []
    for seed in asked_for.seeds:
        for protected in (True, False):
            for method in asked_for.methods:
                best = chosen(records, method=method, protected=protected)
                found.append(
                    Run(
                        method=method,
                        protected=protected,
                        rate=best["learning_rate"],
                        locality_weight=best["locality_weight"],
                        seed=seed,
                        batches=asked_for.batches,
                        facts=asked_for.facts,
                        steps=asked_for.steps,
                    )
                )
    return found


def do(run: Run, *, bench: Bench, base: str) -> Record:
    """Teach batch after batch, and ask for all that were taught after each."""
    edits = bench.facts["counterfact"]
    batches = [edits[n * run.facts : (n + 1) * run.facts] for n in range(run.batches)]
    made = prepared(bench, method=run.method, seed=run.seed)
    after: list[list[float]] = []
    rises: list[float] = []
    used: list[int] = []
    seconds = 0.0
    for number, batch in enumerate(batches):
        first, sparse = number == 0, made.num_written is not None
        written = None
        if made.num_written is not None:
            room = made.num_written // run.batches
            written = particular(made, bench, batch, number=room, used=used)
            used += written
        took = teach(
            made,
            bench,
            batch,
            lesson=Lesson(
                steps=run.steps,
                rates=Rates(bank=run.rate, rest=run.rate if first or not sparse else 0.0),
                locality_weight=run.locality_weight,
                seed=run.seed + number,
            ),
            written=written,
        )
        seconds += took["seconds"]
        flat = asked(made, bench, [edit for each in batches[: number + 1] for edit in each])
        exact, start = [], 0
        for each in batches[: number + 1]:
            part = flat.efficacy.exact[start : start + len(each)]
            exact.append(sum(part) / len(part))
            start += len(each)
        after.append(exact)
        rises.append(forgotten(made, bench).loss_rise)
    said = asdict(run)
    said["learning_rate"] = said.pop("rate")
    return {
        "base": base,
        **said,
        "recall_after": after,
        "recall": sum(after[-1]) / len(after[-1]),
        "recall_of_first": after[-1][0],
        "background_loss_rise_after": rises,
        "background_loss_rise": rises[-1],
        "trainable_parameters": made.trainable,
        "seconds": round(seconds, 2),
    }


def order(record: Record) -> Any:
    """Sort records as tables show them."""
    number = list(RATES).index(record["method"]) if "method" in record else len(RATES)
    return (record.get("base", ""), number, record["run"])


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--base", required=True, help="folder of a base, or small-llama")
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--facts", type=int, default=FACTS, help="facts of a batch")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a batch")
    asked_for = parser.parse_args()
    if asked_for.merge is not None:
        print(merge(asked_for.work, name=NAME, results=asked_for.merge, order=order))
        return
    base = "small-llama" if asked_for.base == "small-llama" else "own"
    tried = [r for r in records_in(asked_for.work, name=injection.NAME) if r.get("base") == base]
    jobs = [run.named(base) for run in runs(asked_for, tried)]
    if asked_for.plan:
        done = {record["run"] for record in records_in(asked_for.work, name=NAME)}
        left = [job for job in jobs if job.name not in done]
        print(f"{len(left)} of {len(jobs)} runs left, {sum(job.cost for job in left):.0f} steps")
        return
    bench = bench_of(asked_for.data, base=asked_for.base)
    warm(bench, base=base)
    work(
        jobs,
        do=functools.partial(do, bench=bench, base=base),
        folder=asked_for.work,
        name=NAME,
        part=asked_for.shard,
        budget_seconds=asked_for.budget_seconds,
    )


if __name__ == "__main__":
    main()
