"""All that is measured of facts: the sweep, what it chose, and facts batch after batch.

    export PYTHONPATH=src:.
    python3 -m benchmarks.evidence.facts --data DATA --base runs/evidence/base \\
        --work runs/evidence/facts
    python3 -m benchmarks.evidence.facts --data DATA --base runs/evidence/base \\
        --work runs/evidence/facts --merge benchmarks/results

BASE is a folder, or `small-llama` for the one in DATA/models. DATA has facts/ and text/. What is
done is not done again, and several processes share the work: benchmarks.evidence.together starts
them. When the sweep is done, what matters most comes first: the most facts in all seeds, batches in
one, fewer facts, the other seeds, and facts of zsRE.
"""

import argparse
import functools
import time

from benchmarks.evidence import continual, injection
from benchmarks.evidence.injection import RATES, SWEEP_SEED, prepared, sweep, taught
from benchmarks.evidence.lessons import Bench, Lesson, bench_of, name_of, teach
from benchmarks.evidence.methods import Rates
from benchmarks.evidence.runs import (
    Job,
    arguments,
    broken,
    merge,
    pace_of,
    records_in,
    until_all,
    work,
)
from benchmarks.records import Record

STAGES = ["sweep", "teach", "continual"]
# 0.0 is how users run it: no protection.
WEIGHTS = [0.0, 4.0, 16.0]
SIZES, SEEDS = [1000, 100, 300], [0, 1, 2]
# Jobs of one kind, and the file of records they go into.
Part = tuple[str, list[Job]]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--base", required=True, help="folder of a base, or small-llama")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--sources", nargs="+", default=["counterfact", "zsre"])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--rates", type=int, default=4, help="how many of each method's rates")
    parser.add_argument("--sweep-facts", type=int, default=300)
    parser.add_argument("--steps", type=int, help="of every run; by its facts if absent")
    parser.add_argument("--facts-per-step", type=int, help="by a run's facts if absent")
    parser.add_argument("--batches", type=int, default=10, help="of the stage continual")
    parser.add_argument("--batch-facts", type=int, default=100)
    parser.add_argument("--batch-steps", type=int, default=80)
    return parser.parse_args()


def parts(asked: argparse.Namespace, records: list[Record], *, base: str) -> list[Part]:
    """List what comes after the sweep, by weight."""
    first, others = asked.seeds[:1], asked.seeds[1:]
    most, fewer = max(asked.sizes), [size for size in asked.sizes if size != max(asked.sizes)]
    found: list[Part] = []

    def facts(sources: list[str], sizes: list[int], seeds: list[int]) -> None:
        if "teach" not in asked.stages:
            return
        for source in sources:
            runs = taught(asked, records, source=source, sizes=sizes, seeds=seeds)
            found.append((injection.NAME, [run.named(base) for run in runs]))

    def batches(seeds: list[int]) -> None:
        if "continual" in asked.stages:
            runs = continual.runs(asked, records, seeds=seeds)
            found.append((continual.NAME, [run.named(base) for run in runs]))

    facts(asked.sources[:1], [most], asked.seeds)
    batches(first)
    facts(asked.sources[:1], fewer, first)
    batches(others)
    facts(asked.sources[:1], fewer, others)
    facts(asked.sources[1:], [most, *fewer], asked.seeds)
    return found


def warm(bench: Bench) -> None:
    """Compile and load what a GPU needs first, so that no run's time holds it."""
    if bench.device.type != "cuda":
        return
    edits = next(iter(bench.facts.values()))[:8]
    for method in ("memory-routed", "lora"):
        lesson = Lesson(
            steps=2,
            facts_per_step=8,
            rates=Rates(bank=1e-3, rest=1e-3),
            locality_weight=1.0,
            seed=SWEEP_SEED,
        )
        teach(prepared(bench, method=method, seed=0), bench, edits, lesson=lesson, written=None)


def swept(asked: argparse.Namespace, *, base: str) -> list[Job]:
    return [run.named(base) for run in sweep(asked)]


def tried(asked: argparse.Namespace, *, base: str) -> list[Record]:
    """Read what the sweep came to."""
    found = records_in(asked.work, name=injection.NAME)
    return [record for record in found if record.get("base") == base]


def plan(asked: argparse.Namespace, *, base: str) -> None:
    """Print how many runs are left, and the plain steps that they cost."""
    known = tried(asked, base=base)
    given: list[Part] = [(injection.NAME, swept(asked, base=base))]
    if any(record.get("stage") == "sweep" for record in known):
        given += parts(asked, known, base=base)
    for name, jobs in given:
        done = {record["run"] for record in records_in(asked.work, name=name)}
        left = [job for job in jobs if job.name not in done]
        print(f"{name}: {len(left)} of {len(jobs)} left, {sum(job.cost for job in left):.0f} steps")


def main() -> None:
    """Run from the command line."""
    asked = options()
    if asked.merge is not None:
        for name, order in ((injection.NAME, injection.order), (continual.NAME, continual.order)):
            if records_in(asked.work, name=name):
                print(merge(asked.work, name=name, results=asked.merge, order=order))
        return
    base = name_of(asked.base)
    if asked.plan:
        plan(asked, base=base)
        return
    pace = pace_of(asked.budget_seconds)
    started = time.monotonic()
    bench = bench_of(asked.data, base=asked.base)
    warm(bench)
    print(f"{asked.shard.index}: ready after {time.monotonic() - started:.0f} s", flush=True)
    given = {"folder": asked.work, "part": asked.shard, "pace": pace}
    do = {
        injection.NAME: functools.partial(injection.do, bench=bench, base=base),
        continual.NAME: functools.partial(continual.do, bench=bench, base=base),
    }
    if "sweep" in asked.stages:
        jobs, name = swept(asked, base=base), injection.NAME
        if not until_all(jobs, do=do[name], name=name, **given):
            raise SystemExit("the time was over before the sweep was: give it more, then go on")
    for name, jobs in parts(asked, tried(asked, base=base), base=base):
        work(jobs, do=do[name], name=name, **given)
    if broken(asked.work):
        raise SystemExit("runs broke:\n" + "\n".join(broken(asked.work)))


if __name__ == "__main__":
    main()
