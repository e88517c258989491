"""Facts taught to a frozen base in seven ways, protected and not, at equally tuned rates.

Stages of benchmarks.evidence.facts. The sweep tries every method at as many rates as any other on
300 facts of CounterFact, with a seed that is not used again; what teaches best is what teaches most
facts and, within two in a hundred of that, forgets least.
"""

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.evidence.lessons import WINDOW, Bench, Lesson, measured, particular, teach
from benchmarks.evidence.methods import Learner, Rates, learner
from benchmarks.evidence.runs import Job
from benchmarks.records import Record

NAME = "evidence_injection"
# As many rates for each; about the ones that its users take.
RATES: dict[str, list[float]] = {
    "memory-dense": [1e-3, 3e-3, 1e-2, 3e-2],
    "memory-sharp": [1e-3, 3e-3, 1e-2, 3e-2],
    "memory-routed": [1e-3, 3e-3, 1e-2, 3e-2],
    "memory-sparse": [1e-3, 3e-3, 1e-2, 3e-2],
    "lora": [2e-4, 6e-4, 2e-3, 6e-3],
    "prefix": [1e-3, 3e-3, 1e-2, 3e-2],
    "full": [3e-5, 1e-4, 3e-4, 1e-3],
}
SWEEP_SEED = 1000
WITHIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Run:
    """One teaching."""

    stage: str
    source: str
    facts: int
    method: str
    rate: float
    locality_weight: float
    seed: int
    steps: int
    facts_per_step: int

    def named(self, base: str) -> Job:
        """Give it as a job; a step that is protected takes about two plain ones."""
        said = f"{self.source}-{self.facts} {self.method} seed {self.seed}"
        said += f" steps {self.steps} of {self.facts_per_step}"
        # A rate that the sweep chose is no part of the name: it is chosen once.
        protection = f"weight {self.locality_weight}" if self.stage == "sweep" else "protected"
        if not self.locality_weight:
            protection = "plain"
        rate = f" rate {self.rate}" if self.stage == "sweep" else ""
        cost = self.steps * (2.2 if self.locality_weight else 1.0)
        return Job(name=f"{base} {self.stage} {said} {protection}{rate}", cost=cost, values=self)


def pace(facts: int) -> tuple[int, int]:
    """Give every method as many steps, of as many facts: each fact is seen 60 to 150 times."""
    return (300, 200) if facts > 500 else (200, 150) if facts > 200 else (150, 100)


def paced(asked: argparse.Namespace, facts: int) -> dict[str, int]:
    """Give steps, and facts of a step: as asked for, else by how many facts there are."""
    steps, each = pace(facts)
    return {"steps": asked.steps or steps, "facts_per_step": asked.facts_per_step or each}


def sweep(asked: argparse.Namespace) -> list[Run]:
    """List the runs that choose rates and weights."""
    return [
        Run(
            stage="sweep",
            source="counterfact",
            facts=asked.sweep_facts,
            method=method,
            rate=rate,
            locality_weight=weight,
            seed=SWEEP_SEED,
            **paced(asked, asked.sweep_facts),
        )
        for weight in asked.weights
        for rate_number in range(asked.rates)
        for method in asked.methods
        for rate in [RATES[method][rate_number]]
    ]


def chosen(records: list[Record], *, method: str, protected: bool) -> Record:
    """Give the run of a sweep that taught best."""
    tried = [
        r
        for r in records
        if r.get("stage") == "sweep"
        and "failed" not in r
        and (r["method"], r["protected"]) == (method, protected)
    ]
    if not tried:
        raise ValueError(
            f"chosen: the sweep must have tried every method, got method={method}, "
            f"protected={protected}, records={len(records)}; run the stage sweep first."
        )
    most = max(r["recall"] for r in tried)
    return min(
        (r for r in tried if r["recall"] >= most - WITHIN), key=lambda r: r["background_loss_rise"]
    )


def choices(records: list[Record], *, method: str, protected: bool) -> list[Record]:
    """Give what was chosen, or nothing for a method that diverged or broke at every rate."""
    try:
        return [chosen(records, method=method, protected=protected)]
    except ValueError as error:
        if not any(record.get("stage") == "sweep" for record in records):
            raise
        print(f"left out: {error}", flush=True)
        return []


def taught(
    asked: argparse.Namespace,
    records: list[Record],
    *,
    source: str,
    sizes: list[int],
    seeds: list[int],
) -> list[Run]:
    """List runs that are reported."""
    return [
        Run(
            stage="teach",
            source=source,
            facts=facts,
            method=method,
            rate=best["learning_rate"],
            locality_weight=best["locality_weight"],
            seed=seed,
            **paced(asked, facts),
        )
        for facts in sizes
        for seed in seeds
        for protected in (True, False)
        for method in asked.methods
        for best in choices(records, method=method, protected=protected)
    ]


def prepared(bench: Bench, *, method: str, seed: int) -> Learner:
    """Make a fresh learner."""
    torch.manual_seed(seed)
    made = learner(bench.base, method=method, context=WINDOW)
    made.model.to(bench.device)
    return made


def do(run: Run, *, bench: Bench, base: str) -> Record:
    """Teach and measure."""
    edits = bench.facts[run.source][: run.facts]
    if not edits:
        raise ValueError(f"do: DATA must hold facts of {run.source}, got none; see its facts/.")
    made = prepared(bench, method=run.method, seed=run.seed)
    lesson = Lesson(
        steps=run.steps,
        facts_per_step=run.facts_per_step,
        rates=Rates(bank=run.rate, rest=run.rate),
        locality_weight=run.locality_weight,
        seed=run.seed,
    )
    written = None
    if made.num_written is not None:
        written = particular(made, bench, edits, number=made.num_written, used=[])
    took = teach(made, bench, edits, lesson=lesson, written=written)
    said = asdict(run) | {"facts": len(edits), "asked_facts": run.facts}
    said["learning_rate"] = said.pop("rate")
    return {
        "base": base,
        **said,
        "protected": bool(run.locality_weight),
        **measured(made, bench, edits),
        **took,
    }


def order(record: Record) -> Any:
    """Sort records as tables show them."""
    number = list(RATES).index(record["method"]) if "method" in record else len(RATES)
    sizes = (record.get("stage", ""), record.get("source", ""), record.get("asked_facts", 0))
    return (record.get("base", ""), *sizes, number, record["run"])
