"""Facts taught to a frozen base in seven ways, protected and not, at equally tuned rates.

    export PYTHONPATH=src:.
    python3 -m benchmarks.evidence.injection --data DATA --base runs/evidence/base \\
        --work runs/evidence/injection --stage sweep --shard 0/1
    python3 -m benchmarks.evidence.injection ... --stage teach --shard 0/1
    python3 -m benchmarks.evidence.injection ... --merge benchmarks/results

BASE is a folder, or `small-llama` for the one in DATA/models. DATA has facts/ and text/. The sweep
tries every method at as many rates as any other on 300 facts of CounterFact, with a seed that is
not used again; what teaches best is what teaches most facts and, within two in a hundred of that,
forgets least. The stage `teach` needs the sweep's lines in the same folder.
"""

import argparse
import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.evidence.lessons import (
    FACTS_PER_STEP,
    WINDOW,
    Bench,
    Lesson,
    bench_of,
    measured,
    particular,
    teach,
)
from benchmarks.evidence.methods import Learner, Rates, learner
from benchmarks.evidence.runs import Job, arguments, merge, records_in, work
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
# 0.0 is how users run it: no protection.
WEIGHTS = [0.0, 2.0, 8.0]
SWEEP_SEED, SEEDS = 1000, [0, 1, 2]
SWEEP_FACTS, SIZES = 300, [1000, 100, 300]
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

    def named(self, base: str) -> Job:
        """Give it as a job; a step that is protected takes about two and a half plain ones."""
        said = f"{self.source}-{self.facts} {self.method} seed {self.seed} steps {self.steps}"
        # A rate that the sweep chose is no part of the name: it is chosen once.
        protection = f"weight {self.locality_weight}" if self.stage == "sweep" else "protected"
        if not self.locality_weight:
            protection = "plain"
        rate = f" rate {self.rate}" if self.stage == "sweep" else ""
        cost = self.steps * (2.5 if self.locality_weight else 1.0)
        return Job(name=f"{base} {self.stage} {said} {protection}{rate}", cost=cost, values=self)


def steps_for(facts: int) -> int:
    """Give as many steps to every method: six hundred for a thousand facts, half for a hundred."""
    return 600 if facts > 500 else 400 if facts > 200 else 300


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
            steps=asked.steps or steps_for(asked.sweep_facts),
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
            f"protected={protected}, records={len(records)}; run --stage sweep first."
        )
    most = max(r["recall"] for r in tried)
    return min(
        (r for r in tried if r["recall"] >= most - WITHIN), key=lambda r: r["background_loss_rise"]
    )


def taught(asked: argparse.Namespace, records: list[Record]) -> list[Run]:
    """List the runs that are reported, those of most weight first."""
    best = {
        (method, protected): chosen(records, method=method, protected=protected)
        for method in asked.methods
        for protected in (False, True)
    }
    cases = [(seed, "counterfact", facts) for seed in asked.seeds for facts in asked.sizes]
    cases += [(seed, "zsre", facts) for seed in asked.seeds for facts in asked.sizes]
    if asked.sources == "counterfact":
        cases = [case for case in cases if case[1] == "counterfact"]
    return [
        Run(
            stage="teach",
            source=source,
            facts=facts,
            method=method,
            rate=best[method, protected]["learning_rate"],
            locality_weight=best[method, protected]["locality_weight"],
            seed=seed,
            steps=asked.steps or steps_for(facts),
        )
        for seed, source, facts in cases
        for protected in (True, False)
        for method in asked.methods
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


def warm(bench: Bench, *, base: str) -> None:
    """Compile what a GPU compiles, so that no run's time holds it."""
    if bench.device.type != "cuda":
        return
    for weight in (0.0, 2.0):
        run = Run(
            stage="warm",
            source=next(iter(bench.facts)),
            facts=FACTS_PER_STEP,
            method="memory-sharp",
            rate=1e-3,
            locality_weight=weight,
            seed=SWEEP_SEED,
            steps=3,
        )
        do(run, bench=bench, base=base)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--base", required=True, help="folder of a base, or small-llama")
    parser.add_argument("--stage", choices=["sweep", "teach"])
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--sources", choices=["both", "counterfact"], default="both")
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--rates", type=int, default=4, help="how many of each method's rates")
    parser.add_argument("--sweep-facts", type=int, default=SWEEP_FACTS)
    parser.add_argument("--steps", type=int, help="steps of every run; by its facts if absent")
    return parser.parse_args()


def order(record: Record) -> Any:
    """Sort records as tables show them."""
    number = list(RATES).index(record["method"]) if "method" in record else len(RATES)
    sizes = (record.get("stage", ""), record.get("source", ""), record.get("asked_facts", 0))
    return (record.get("base", ""), *sizes, number, record["run"])


def main() -> None:
    """Run from the command line."""
    asked = options()
    if asked.merge is not None:
        print(merge(asked.work, name=NAME, results=asked.merge, order=order))
        return
    base = "small-llama" if asked.base == "small-llama" else "own"
    records = [r for r in records_in(asked.work, name=NAME) if r.get("base") == base]
    runs = sweep(asked) if asked.stage == "sweep" else taught(asked, records)
    jobs = [run.named(base) for run in runs]
    if asked.plan:
        done = {record["run"] for record in records}
        left = [job for job in jobs if job.name not in done]
        print(f"{len(left)} of {len(jobs)} runs left, {sum(job.cost for job in left):.0f} steps")
        return
    bench = bench_of(asked.data, base=asked.base)
    warm(bench, base=base)
    work(
        jobs,
        do=functools.partial(do, bench=bench, base=base),
        folder=asked.work,
        name=NAME,
        part=asked.shard,
        budget_seconds=asked.budget_seconds,
    )


if __name__ == "__main__":
    main()
