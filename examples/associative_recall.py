"""Train models of two layers to recall associations, and compare how many pairs they hold.

    python examples/associative_recall.py
    python examples/associative_recall.py factories.associative_recall:full --output runs/recall

A text is pairs of a key and a value, then keys at random places, each of which asks for its value;
it is new in every step. The models are those of `factories/associative_recall.py`. Prints a table,
and leaves `recall.json` and `recall.png` in the output folder (the plot needs matplotlib). The one
argument is the factory to run: `quick`, if absent, takes minutes on a CPU, `full` wants a GPU.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from factories.association_texts import texts
from factories.associative_recall import Comparison, Model

FACTORY = "factories.associative_recall:quick"
OUTPUT = "runs/associative_recall"
SEED = int(os.environ.get("MEMTX_SEED", "0"))
# Steps whose texts are made at once: a GPU makes a thousand rows as fast as ten.
AHEAD = 32
# Steps of each length of text that run as they are before a GPU records one and plays it back.
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one model: the share of keys answered, by number of pairs, as it learns."""

    method: str
    parameters: int
    learning_rate: float
    seed: int
    seconds: float
    steps: list[int]
    accuracy: dict[int, list[float]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train models to recall associations.")
    parser.add_argument(
        "factory",
        metavar="FACTORY",
        nargs="?",
        default=FACTORY,
        help=f"what to train, as module:function ({FACTORY} if absent)",
    )
    parser.add_argument(
        "--output", default=OUTPUT, metavar="FOLDER", help=f"where to save ({OUTPUT} if absent)"
    )
    return parser.parse_args()


def factory(name: str) -> Callable[[], Comparison]:
    """Find a factory by `module:function`."""
    module, _, function = name.partition(":")
    try:
        found: Callable[[], Comparison] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"associative_recall: FACTORY must be module:function of a factory, got {name!r} "
            f"({error}); try {FACTORY}."
        ) from error
    return found


@torch.no_grad()
def accuracy(model: Model, comparison: Comparison, *, pairs: int, device: torch.device) -> float:
    """Give the share of keys whose value is scored highest, over texts that are always the same."""
    generator = torch.Generator(device).manual_seed(1_000_000)
    right = asked = 0
    model.eval()
    length = pairs * comparison.tokens_per_pair
    rows = max(1, min(comparison.rows_of_test, comparison.tokens_per_step // length))
    for _ in range(comparison.rows_of_test // rows):
        ids, labels = texts(
            rows=rows,
            pairs=pairs,
            length=length,
            vocab_size=comparison.vocab_size,
            generator=generator,
            once=True,
        )
        halves = model.halves()
        hidden = halves.hidden_states(
            input_ids=ids, attention_mask=None, position_ids=None, labels=None
        )
        here = labels[:, 1:] != -100
        best = model.head(hidden[:, :-1][here]).argmax(dim=-1)
        right += int((best == labels[:, 1:][here]).sum())
        asked += int(here.sum())
    model.train()
    return right / asked


def rate(step: int, *, steps: int) -> float:
    """Give the share of the learning rate at a step: a twentieth of warm-up, then a cosine."""
    warm_up = max(1, steps // 20)
    return min(step / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def texts_ahead(comparison: Comparison, *, pairs: int, generator: torch.Generator) -> list[Any]:
    """Make the texts of several steps with one number of pairs, each with its labels."""
    length = pairs * comparison.tokens_per_pair
    rows = comparison.tokens_per_step // length
    ids, labels = texts(
        rows=AHEAD * rows,
        pairs=pairs,
        length=length,
        vocab_size=comparison.vocab_size,
        generator=generator,
        once=False,
    )
    return list(zip(ids.split(rows), labels.split(rows), strict=True))


def loss_of(model: Model, ids: Tensor, labels: Tensor, *, pairs: int) -> Tensor:
    """Give the loss that the model gives itself, of the scores at the places that ask alone."""
    asking = torch.arange(2 * pairs, ids.shape[1], 2, device=ids.device)
    scores = model(input_ids=ids, logits_to_keep=asking).logits
    return F.cross_entropy(scores.flatten(0, 1), labels[:, 2 * pairs + 1 :: 2].flatten())


class Steps:
    """The steps of training; a GPU records one for each number of pairs and plays it back.

    A step of so small a model is some hundred short kernels, which a processor cannot start as
    fast as a GPU runs them. A recorded step does what the step did, on the texts copied into it.
    """

    def __init__(self, *, model: Model, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.recorded: dict[int, Any] = {}
        self.seen: dict[int, int] = {}

    def forget(self) -> None:
        """Record anew: the model has changed."""
        self.recorded, self.seen = {}, {}

    def run(self, ids: Tensor, labels: Tensor, *, pairs: int) -> None:
        """Take a step on texts of a number of pairs."""
        self.seen[pairs] = self.seen.get(pairs, 0) + 1
        if not ids.is_cuda:
            self.step(ids, labels, pairs=pairs)
        elif self.seen[pairs] <= WARM_UP:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self.step(ids, labels, pairs=pairs)
            torch.cuda.current_stream().wait_stream(aside)
        else:
            if pairs not in self.recorded:
                self.recorded[pairs] = self.record(ids, labels, pairs=pairs)
            graph, *places = self.recorded[pairs]
            for place, given in zip(places, (ids, labels), strict=True):
                place.copy_(given)
            graph.replay()

    def record(self, ids: Tensor, labels: Tensor, *, pairs: int) -> tuple[Any, Tensor, Tensor]:
        """Record a step without taking it."""
        places = ids.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.step(*places, pairs=pairs)
        return graph, *places

    def step(self, ids: Tensor, labels: Tensor, *, pairs: int) -> None:
        """Take a step as it is written."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_of(self.model, ids, labels, pairs=pairs).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def optimizer_of(model: Model, *, learning_rate: float) -> torch.optim.AdamW:
    """Give AdamW; on a GPU in one kernel, with a rate that a recorded step reads anew."""
    gpu = next(model.parameters()).is_cuda
    start = torch.tensor(learning_rate, device="cuda") if gpu else learning_rate
    return torch.optim.AdamW(
        model.parameters(),
        lr=start,
        betas=(0.9, 0.95),
        weight_decay=0.01,
        fused=gpu,
        capturable=gpu,
    )


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameters, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def train(
    name: str,
    comparison: Comparison,
    *,
    learning_rate: float,
    device: torch.device,
    seed: int,
) -> Outcome:
    """Train one model on texts of few and of many pairs, as many tokens in each step."""
    torch.manual_seed(seed)
    model = comparison.models[name]().to(device)
    generator = torch.Generator(device).manual_seed(seed)
    turns = torch.Generator().manual_seed(seed)
    optimizer = optimizer_of(model, learning_rate=learning_rate)
    steps = Steps(model=model, optimizer=optimizer)
    ready: dict[int, list[Any]] = {pairs: [] for pairs in comparison.num_pairs}
    measured: dict[int, list[float]] = {pairs: [] for pairs in comparison.num_pairs}
    at: list[int] = []
    started = time.perf_counter()
    for step in range(1, comparison.steps + 1):
        if step == comparison.change_at and name in comparison.changes:
            comparison.changes[name](model)
            steps.forget()
        turn = int(torch.randint(len(comparison.num_pairs), (), generator=turns))
        pairs = comparison.num_pairs[turn]
        if not ready[pairs]:
            ready[pairs] = texts_ahead(comparison, pairs=pairs, generator=generator)
        set_rate(optimizer, learning_rate * rate(step, steps=comparison.steps))
        steps.run(*ready[pairs].pop(), pairs=pairs)
        if step % comparison.every == 0:
            at.append(step)
            for each, found in measured.items():
                found.append(accuracy(model, comparison, pairs=each, device=device))
            shown = "  ".join(f"{each}: {found[-1]:.3f}" for each, found in measured.items())
            print(f"{name}, step {step}, right by number of pairs: {shown}", flush=True)
    return Outcome(
        method=name,
        parameters=sum(p.numel() for p in model.parameters()),
        learning_rate=learning_rate,
        seed=seed,
        seconds=time.perf_counter() - started,
        steps=at,
        accuracy=measured,
    )


def table(outcomes: list[Outcome]) -> str:
    """Write the share of keys answered at the end, by number of pairs."""
    titles = [f"{pairs} pairs" for pairs in outcomes[0].accuracy]
    head = f"{'model':<20}{'parameters':>12}" + "".join(f"{title:>11}" for title in titles)
    lines = [head + f"{'seconds':>10}"]
    for outcome in outcomes:
        shares = "".join(f"{found[-1]:>11.3f}" for found in outcome.accuracy.values())
        lines.append(
            f"{outcome.method:<20}{outcome.parameters:>12,}{shares}{outcome.seconds:>10.0f}"
        )
    return "\n".join(lines)


def plot(outcomes: list[Outcome], *, path: Path) -> None:
    """Draw how the most pairs are learned, and beside it what each number of pairs comes to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    learning, holding = figure.subplots(1, 2)
    for outcome in outcomes:
        most = max(outcome.accuracy)
        learning.plot(outcome.steps, outcome.accuracy[most], label=outcome.method)
        ends = [found[-1] for found in outcome.accuracy.values()]
        holding.plot(list(outcome.accuracy), ends, marker="o", label=outcome.method)
        learning.set_title(f"{most} pairs, while learning")
    holding.set_title("At the end")
    holding.set_xscale("log", base=2)
    holding.set_xticks(list(outcomes[0].accuracy), [str(p) for p in outcomes[0].accuracy])
    learning.set_xlabel("optimizer step")
    holding.set_xlabel("pairs of key and value")
    for axes in (learning, holding):
        axes.set_ylabel("share of keys answered")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(visible=True, alpha=0.3)
    # Beside the axes: at a corner of one it would lie over a line.
    figure.legend(*holding.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path)


def compare(comparison: Comparison, *, device: torch.device, seed: int) -> list[Outcome]:
    """Train one model after the other."""
    return [
        train(name, comparison, learning_rate=rate, device=device, seed=seed)
        for name, rate in comparison.learning_rates.items()
    ]


def main() -> None:
    """Run from the command line; mistakes end in one line."""
    options = parse()
    try:
        comparison = factory(options.factory)()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high")  # products of float32 in TF32 on a GPU
        outcomes = compare(comparison, device=device, seed=SEED)
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(outcome) for outcome in outcomes], indent=2)
        (folder / "recall.json").write_text(text + "\n", encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is not None:
            plot(outcomes, path=folder / "recall.png")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"\n{table(outcomes)}")
    print(f"{comparison.steps} steps of {comparison.tokens_per_step:,} tokens; seed {SEED}")


if __name__ == "__main__":
    main()
