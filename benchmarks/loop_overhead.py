"""What the training loop costs beside forward, backward and optimizer.

    PYTHONPATH=src:. python3 benchmarks/loop_overhead.py --output benchmarks/results

The stacks of thirty million parameters of `factories.pretraining` are trained by `Trainer`, as the
factory composes it, with its loggers and without evaluations, and by a bare loop over batches that
lie on the device already: forward, backward, `optimizer.step()`, `zero_grad()`, and nothing else.
The two take turns, round after round; numbers are medians over rounds. What the trainer does
besides (fetching and moving batches, sums over processes, clipping, looking for numbers that are
not finite, records, loggers) is the difference:

- `overhead_percent`: of the trainer's step, what the bare loop does not take.
- `overhead_percent_clipped`: the same beside a bare loop that clips as the trainer does.
- `outside_percent`: on a CPU also by the clock inside one run: of the trainer's step, what is
  neither forward and backward nor the optimizer. Noise of the machine is in both parts alike.

On a GPU a step is the factory's, 32 rows of 512 tokens; on a CPU, where that would take minutes, 2
rows of 128, so that what is done once for a parameter weighs more.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from benchmarks.clocks import forget_peak, peak_gib
from benchmarks.records import Record, write_records
from factories import pretraining
from factories.from_scratch import dense_a_30m, routed_a_30m, vanilla_30m
from factories.tiny_base import manual, qwen_tokenizer
from memtx.train import (
    Optimizer,
    ParameterGroup,
    SingleProcess,
    Trainer,
    WarmupConstant,
)
from memtx.train.step import move

NAME = "loop_overhead"
LIBRARIES = ["torch", "transformers"]
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How long it is measured, and what a step may cost beside its work."""

    case: str
    warmup: int
    steps: int
    rounds: int
    limit_percent: float


ON_GPU = Setting(case="30M, 32 x 512 tokens", warmup=5, steps=20, rounds=3, limit_percent=2.0)
ON_CPU = Setting(case="30M, 2 x 128 tokens", warmup=1, steps=3, rounds=3, limit_percent=5.0)


def settle(device: torch.device) -> float:
    """Wait for the device and give the time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@final
class Stopwatch:
    """A logger that looks at the clock after the warm-up and after the last step."""

    def __init__(self, *, setting: Setting, device: torch.device, inside: "Inside") -> None:
        self.setting = setting
        self.device = device
        self.inside = inside
        self.times: list[float] = []
        self.spent_inside = 0.0

    def begin(self, step: int) -> None:
        """Nothing is opened."""

    def log(self, record: dict[str, float]) -> None:
        if record["step"] == self.setting.warmup:
            self.inside.seconds = 0.0
        if record["step"] in (self.setting.warmup, self.setting.warmup + self.setting.steps):
            self.times.append(settle(self.device))
            self.spent_inside = self.inside.seconds

    def close(self) -> None:
        """Nothing is open."""

    def seconds(self) -> float:
        return self.times[1] - self.times[0]


@dataclass(kw_only=True)
class Inside:
    """Host time from the start of a forward to the end of its backward pass, and of updates."""

    seconds: float
    started: float

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.started

    def before_forward(self, module: nn.Module, args: object) -> None:
        """Start; the face of a hook of torch's."""
        self.start()

    def before_update(self, optimizer: object, args: object, kwargs: object) -> None:
        """Start; the face of a hook of torch's."""
        self.start()

    def after_update(self, optimizer: object, args: object, kwargs: object) -> None:
        """Stop; the face of a hook of torch's."""
        self.stop()


@final
class Timed:
    """One process that notes when backward passes are done: then gradients are clipped."""

    def __init__(self, *, inner: SingleProcess, inside: Inside) -> None:
        self.inner = inner
        self.inside = inside
        self.rank, self.world_size, self.device = inner.rank, inner.world_size, inner.device

    def wrap(self, module: nn.Module) -> nn.Module:
        return self.inner.wrap(module)

    def all_sum(self, tensor: Tensor) -> Tensor:
        return self.inner.all_sum(tensor)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        return self.inner.no_sync(module)

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        return self.inner.whole(module)

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        self.inside.stop()
        return self.inner.clip(parameters, max_norm)


@final
class TimedOptimizer:
    """An optimizer whose steps are timed."""

    def __init__(self, *, inner: Optimizer, inside: Inside) -> None:
        self.inner = inner
        self.inside = inside

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        made = self.inner.make(groups)
        made.register_step_pre_hook(self.inside.before_update)
        made.register_step_post_hook(self.inside.after_update)
        return made


def by_trainer(trainer: Trainer, *, setting: Setting) -> tuple[float, float]:
    """Give the seconds of a step, and those of its forward, backward and update by the clock."""
    inside = Inside(seconds=0.0, started=0.0)
    device = trainer.parallelism.device
    watch = Stopwatch(setting=setting, device=device, inside=inside)
    steps = setting.warmup + setting.steps
    hook = trainer.objective.register_forward_pre_hook(inside.before_forward)
    replace(
        trainer,
        optimizer=TimedOptimizer(inner=trainer.optimizer, inside=inside),
        parallelism=Timed(inner=SingleProcess(device=device), inside=inside),
        schedule=WarmupConstant(warmup_steps=0),
        steps=steps,
        evaluations=[],
        loggers=[*trainer.loggers, watch],
    ).run()
    hook.remove()
    return watch.seconds() / setting.steps, watch.spent_inside / setting.steps


def by_hand(trainer: Trainer, *, setting: Setting, clips: bool) -> float:
    """Give the seconds of a step of the bare loop over batches that are on the device."""
    objective, device = trainer.objective, trainer.parallelism.device
    optimizer = trainer.optimizer.make(trainer.groups)
    weights = torch.tensor([*objective.weights.values()], device=device)
    parallelism = SingleProcess(device=device)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    steps = setting.warmup + setting.steps
    batches, counts = [], []
    for _ in range(steps):
        found = {n: s.next_batch(rank=0, world_size=1) for n, s in trainer.streams.items()}
        counts.append(objective.counts(found).to(device))
        batches.append({name: move(batch, device) for name, batch in found.items()})
    objective.train()
    started = settle(device)
    for number in range(steps):
        if number == setting.warmup:
            started = settle(device)
        with trainer.precision.context(device):
            shares = objective(batches[number]) / counts[number]
        (weights * shares).sum().backward()
        if clips:
            parallelism.clip(trained, trainer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (settle(device) - started) / setting.steps


def measure(name: str, *, compose: Callable[[], Trainer], setting: Setting) -> list[Record]:
    """Train one stack both ways in turns."""
    trainer = compose()
    device = trainer.parallelism.device
    loop, bare, clipped, inside, peaks = [], [], [], [], {}
    for _ in range(setting.rounds):
        forget_peak(device)
        seconds, within = by_trainer(trainer, setting=setting)
        peaks["memtx"] = peak_gib(device)
        loop.append(seconds)
        inside.append(1.0 - within / seconds)
        forget_peak(device)
        bare.append(by_hand(trainer, setting=setting, clips=False))
        peaks["bare"] = peak_gib(device)
        clipped.append(by_hand(trainer, setting=setting, clips=True))
    case = f"{name}, {setting.case}"
    ratio, beside_clipped = (
        statistics.median(one / other for one, other in zip(loop, others, strict=True))
        for others in (bare, clipped)
    )
    record: Record = {
        "case": case,
        "variant": "memtx",
        "milliseconds": 1000.0 * statistics.median(loop),
        "peak_gib": peaks["memtx"],
        "ratio": ratio,
        "overhead_percent": 100.0 * (1.0 - 1.0 / ratio),
        "overhead_percent_clipped": 100.0 * (1.0 - 1.0 / beside_clipped),
        "limit_percent": setting.limit_percent,
        "steps": setting.steps,
        "rounds": setting.rounds,
    }
    if device.type == "cpu":
        record["outside_percent"] = 100.0 * statistics.median(inside)
    other: Record = {
        "case": case,
        "variant": "bare",
        "milliseconds": 1000.0 * statistics.median(bare),
        "peak_gib": peaks["bare"],
    }
    third = {
        **other,
        "variant": "bare-clipped",
        "milliseconds": 1000.0 * statistics.median(clipped),
    }
    return [record, other, third]


def trainers(device: torch.device, *, folder: Path) -> dict[str, Callable[[], Trainer]]:
    """Give the factory's trainers: on a GPU as they are, on a CPU with smaller batches."""
    documents, held_out = manual(seed=SEED)
    parallelism = SingleProcess(device=device)
    if device.type == "cuda":
        return pretraining.thirty_million(
            documents=documents,
            held_out=held_out,
            folder=folder,
            seed=SEED,
            parallelism=parallelism,
        ).trainers
    return pretraining.comparison(
        stacks={"vanilla": vanilla_30m, "dense": dense_a_30m, "routed": routed_a_30m},
        tokenizer=qwen_tokenizer(documents, vocabulary=8_192),
        documents=documents,
        held_out=held_out,
        folder=folder,
        parallelism=parallelism,
        steps=100,
        rows_per_step=2,
        row_length=128,
        learning_rate=1e-3,
        bank_rate=1e-3,
        every=100,
        seed=SEED,
    ).trainers


def table(records: list[Record]) -> str:
    """Give the trainer's records as lines."""
    lines = []
    for record in (each for each in records if each["variant"] == "memtx"):
        by_clock = record.get("outside_percent")
        clock = "" if by_clock is None else f", {by_clock:.2f}% by the clock inside"
        lines.append(
            f"{record['case']:<32}{record['milliseconds']:>10.1f} ms a step, "
            f"{record['overhead_percent']:.2f}% beside the bare loop, "
            f"{record['overhead_percent_clipped']:.2f}% beside one that clips{clock} "
            f"(limit {record['limit_percent']:.0f}%)"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for loop_overhead.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = ON_GPU if device.type == "cuda" else ON_CPU
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, compose in trainers(device, folder=Path(folder)).items():
            records += measure(name, compose=compose, setting=setting)
            print(table(records[-3:]), flush=True)
    name = NAME if device.type == "cuda" else f"{NAME}_cpu"
    path = write_records(
        folder=options.output, name=name, device=device, libraries=LIBRARIES, records=records
    )
    print(path)


if __name__ == "__main__":
    main()
