"""How many associations two layers hold: `examples/associative_recall.py` at full size.

    PYTHONPATH=src:. python3 benchmarks/associative_recall.py --output benchmarks/results
    PYTHONPATH=src:. python3 benchmarks/associative_recall.py --models delta --rate 1e-3 --output a
    PYTHONPATH=src:. python3 benchmarks/associative_recall.py --collect a b --output results
    PYTHONPATH=src:. python3 benchmarks/associative_recall.py --draw docs/associative-recall.png

The first trains and writes `associative_recall.json`, with what each model came to and its curve,
anew after each model, so that a run that is stopped keeps what it has. The second does so for some
models, at another learning rate; several such runs share a GPU. The third gathers what several
runs wrote: of each model the run that came furthest with the most pairs, and what each rate came
to. The last draws the plot from that file.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.records import write_records
from examples.associative_recall import Outcome, factory, plot, table, train
from factories.associative_recall import Comparison

NAME = "associative_recall"
LIBRARIES = ["torch", "triton"]
RESULTS = Path("benchmarks/results")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--factory", default="factories.associative_recall:full")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--models", nargs="*", help="names of the models to train; all if absent")
    parser.add_argument("--rate", type=float, help="learning rate; the factory's if absent")
    parser.add_argument("--collect", nargs="*", type=Path, help="folders of runs to gather")
    parser.add_argument("--steps", type=int, help="steps of training; the factory's if absent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw", type=Path, help="draw the plot of the results into this PNG")
    return parser.parse_args()


def records_of(outcomes: list[Outcome]) -> list[dict[str, object]]:
    """Give a record for each model: what it came to, and its curve."""
    return [
        {
            "case": "multi-query associative recall",
            "final": {pairs: found[-1] for pairs, found in outcome.accuracy.items()},
            **asdict(outcome),
        }
        for outcome in outcomes
    ]


def outcomes_of(path: Path) -> list[Outcome]:
    """Read what a results file holds."""
    records = json.loads(path.read_text(encoding="utf-8"))["records"]
    fields = ("method", "parameters", "learning_rate", "seed", "seconds", "steps")
    return [
        Outcome(
            **{name: record[name] for name in fields},
            accuracy={int(pairs): found for pairs, found in record["accuracy"].items()},
        )
        for record in records
    ]


def gathered(folders: list[Path]) -> list[dict[str, object]]:
    """Give of each model the best of its runs, with what each learning rate came to."""
    runs = [each for folder in folders for each in outcomes_of(folder / f"{NAME}.json")]
    reached = {id(run): run.accuracy[max(run.accuracy)][-1] for run in runs}
    best: dict[str, Outcome] = {}
    for run in sorted(runs, key=lambda run: reached[id(run)]):
        best[run.method] = run
    tried = {
        name: {str(run.learning_rate): reached[id(run)] for run in runs if run.method == name}
        for name in best
    }
    records = records_of(list({run.method: best[run.method] for run in runs}.values()))
    return [{**record, "tried": tried[str(record["method"])]} for record in records]


def scaled(comparison: Comparison, *, steps: int) -> Comparison:
    """Give a comparison of other length, measured about as often."""
    measured = max(1, comparison.steps // comparison.every)
    every = max(1, steps // measured)
    return replace(
        comparison,
        steps=every * max(1, steps // every),
        every=every,
        change_at=comparison.change_at * steps // comparison.steps,
    )


def main() -> None:
    """Run from the command line."""
    options = parse()
    if options.draw is not None:
        plot(outcomes_of(options.output / f"{NAME}.json"), path=options.draw)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.collect is not None:
        records = gathered(options.collect)
        write_records(
            folder=options.output, name=NAME, device=device, libraries=LIBRARIES, records=records
        )
        print(table(outcomes_of(options.output / f"{NAME}.json")))
        return
    comparison = factory(options.factory)()
    torch.set_float32_matmul_precision("high")  # products of float32 in TF32 on a GPU
    if options.steps is not None:
        comparison = scaled(comparison, steps=options.steps)
    outcomes = []
    for name in options.models or comparison.models:
        chosen = options.rate or comparison.learning_rates[name]
        done = train(name, comparison, learning_rate=chosen, device=device, seed=options.seed)
        outcomes.append(done)
        write_records(
            folder=options.output,
            name=NAME,
            device=device,
            libraries=LIBRARIES,
            records=records_of(outcomes),
        )
    print(table(outcomes))


if __name__ == "__main__":
    main()
