"""Ten batches of a hundred facts, one after another: what is left of the first when the last is in.

A stage of benchmarks.evidence.facts. Methods, rates and protection are those that the sweep chose.
Nothing of an earlier batch is shown again. `memory-sparse` writes slots of its own for every batch,
and what reads them is learned with the first batch alone.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.evidence.injection import RATES, choices, prepared
from benchmarks.evidence.lessons import Bench, Lesson, asked, forgotten, particular, teach
from benchmarks.evidence.methods import Rates
from benchmarks.evidence.runs import Job
from benchmarks.records import Record

NAME = "evidence_continual"


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
            cost=self.batches * self.steps * (2.2 if self.protected else 1.0),
            values=self,
        )


def runs(asked_for: argparse.Namespace, records: list[Record], *, seeds: list[int]) -> list[Run]:
    """List the runs."""
    return [
        Run(
            method=method,
            protected=protected,
            rate=best["learning_rate"],
            locality_weight=best["locality_weight"],
            seed=seed,
            batches=asked_for.batches,
            facts=asked_for.batch_facts,
            steps=asked_for.batch_steps,
        )
        for seed in seeds
        for protected in (True, False)
        for method in asked_for.methods
        for best in choices(records, method=method, protected=protected)
    ]


def do(run: Run, *, bench: Bench, base: str) -> Record:
    """Teach batch after batch, and ask for all that were taught after each."""
    # Their own prompts alone are asked.
    edits = [replace(each, paraphrases=[], neighbours=[]) for each in bench.facts["counterfact"]]
    batches = [edits[n * run.facts : (n + 1) * run.facts] for n in range(run.batches)]
    made = prepared(bench, method=run.method, seed=run.seed)
    after: list[list[float]] = []
    rises: list[float] = []
    used: list[int] = []
    seconds = 0.0
    for number, batch in enumerate(batches):
        frozen = number > 0 and made.num_written is not None
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
                facts_per_step=run.facts,
                rates=Rates(bank=run.rate, rest=0.0 if frozen else run.rate),
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
