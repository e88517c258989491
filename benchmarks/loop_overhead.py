"""What the training loop costs beside forward, backward and optimizer.

    PYTHONPATH=src:. python3 benchmarks/loop_overhead.py --output benchmarks/results

The stacks of thirty million parameters of `factories.pretraining` are trained by `Trainer`, as the
factory composes it, with its loggers and without evaluations, and by a bare loop over batches that
lie on the device already: forward under the same autocast, backward, the same clipping,
`optimizer.step()`, `zero_grad()`, and nothing else; it never waits for the device. The two take
turns, round after round; numbers are medians over rounds. What the trainer does besides (fetching
and moving batches, sums over processes, looking for numbers that are not finite, records, loggers)
is the difference:

- `overhead_percent`: of the trainer's step, what the bare loop does not take.
- `outside_percent`: on a CPU also by the clock inside one run: of the trainer's step, what is
  neither forward and backward nor the optimizer. Noise of the machine is in both parts alike.

Both are timed from one update to another, with the device waited for at these two alone. On a GPU a
step is 128 rows of 512 tokens, which it is busy with, and once more the factory's 32 rows, where it
waits for the host to launch its kernels, so that whatever the host does besides is seen in full. On
a CPU, where that would take minutes, it is 2 rows of 128, so that what is done once for a parameter
weighs more. `--rows` measures some of them.
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
from benchmarks.records import Record, kept_records, write_records
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
from memtx.train.moving import move

NAME = "loop_overhead"
LIBRARIES = ["torch", "transformers"]
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How large a step is, how long it is measured, and what it may cost beside its work."""

    rows: int
    length: int
    warmup: int
    steps: int
    rounds: int
    limit_percent: float


ON_GPU = [
    Setting(rows=128, length=512, warmup=6, steps=20, rounds=3, limit_percent=2.0),
    Setting(rows=32, length=512, warmup=10, steps=40, rounds=3, limit_percent=2.0),
]
ON_CPU = [Setting(rows=2, length=128, warmup=1, steps=3, rounds=3, limit_percent=5.0)]


def settle(device: torch.device) -> float:
    """Wait for the device and give the time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@final
class Stopwatch:
    """Looks at the clock behind the last update of the warm-up, and behind the last of all."""

    def __init__(self, *, setting: Setting, device: torch.device) -> None:
        self.setting = setting
        self.device = device
        self.updates = 0
        self.times: list[float] = []

    def after_update(self, optimizer: object, args: object, kwargs: object) -> None:
        """Count; the face of a hook of torch's."""
        self.updates += 1
        if self.updates in (self.setting.warmup, self.setting.warmup + self.setting.steps):
            self.times.append(settle(self.device))

    def seconds(self) -> float:
        """Give the seconds of a step."""
        return (self.times[1] - self.times[0]) / self.setting.steps


@dataclass(kw_only=True)
class Inside:
    """Host time from the start of a forward to the end of its backward pass, and of updates."""

    setting: Setting
    seconds: float
    started: float
    updates: int

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
        """Stop, and forget the warm-up; the face of a hook of torch's."""
        self.stop()
        self.updates += 1
        if self.updates == self.setting.warmup:
            self.seconds = 0.0


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

    def __init__(self, *, inner: Optimizer, inside: Inside, watch: Stopwatch) -> None:
        self.inner = inner
        self.inside = inside
        self.watch = watch

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        made = self.inner.make(groups)
        made.register_step_pre_hook(self.inside.before_update)
        made.register_step_post_hook(self.inside.after_update)
        made.register_step_post_hook(self.watch.after_update)
        return made


def by_trainer(trainer: Trainer, *, setting: Setting) -> tuple[float, float]:
    """Give the seconds of a step, and those of its forward, backward and update by the clock."""
    device = trainer.parallelism.device
    inside = Inside(setting=setting, seconds=0.0, started=0.0, updates=0)
    watch = Stopwatch(setting=setting, device=device)
    hook = trainer.objective.register_forward_pre_hook(inside.before_forward)
    replace(
        trainer,
        optimizer=TimedOptimizer(inner=trainer.optimizer, inside=inside, watch=watch),
        parallelism=Timed(inner=SingleProcess(device=device), inside=inside),
        schedule=WarmupConstant(warmup_steps=0),
        steps=setting.warmup + setting.steps,
        evaluations=[],
    ).run()
    hook.remove()
    return watch.seconds(), inside.seconds / setting.steps


def by_hand(trainer: Trainer, *, setting: Setting) -> float:
    """Give the seconds of a step of the bare loop over batches that are on the device."""
    objective, device = trainer.objective, trainer.parallelism.device
    optimizer = trainer.optimizer.make(trainer.groups)
    watch = Stopwatch(setting=setting, device=device)
    optimizer.register_step_post_hook(watch.after_update)
    weights = torch.tensor([*objective.weights.values()], device=device)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    batches, counts = [], []
    for _ in range(setting.warmup + setting.steps):
        found = {n: s.next_batch(rank=0, world_size=1) for n, s in trainer.streams.items()}
        counts.append(objective.counts(found).to(device))
        batches.append({name: move(batch, device) for name, batch in found.items()})
    objective.train()
    for batch, count in zip(batches, counts, strict=True):
        with trainer.precision.context(device):
            shares = objective(batch) / count
        (weights * shares).sum().backward()
        nn.utils.clip_grad_norm_(trained, trainer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return watch.seconds()


def measure(name: str, *, compose: Callable[[], Trainer], setting: Setting) -> list[Record]:
    """Train one stack both ways in turns."""
    trainer = compose()
    device = trainer.parallelism.device
    loop, bare, inside, peaks = [], [], [], {}
    for _ in range(setting.rounds):
        forget_peak(device)
        seconds, within = by_trainer(trainer, setting=setting)
        peaks["memtx"] = peak_gib(device)
        loop.append(seconds)
        inside.append(1.0 - within / seconds)
        forget_peak(device)
        bare.append(by_hand(trainer, setting=setting))
        peaks["bare"] = peak_gib(device)
    case = f"{name}, 30M, {setting.rows} x {setting.length} tokens"
    ratio = statistics.median(one / other for one, other in zip(loop, bare, strict=True))
    record: Record = {
        "case": case,
        "variant": "memtx",
        "milliseconds": 1000.0 * statistics.median(loop),
        "peak_gib": peaks["memtx"],
        "ratio": ratio,
        "overhead_percent": 100.0 * (1.0 - 1.0 / ratio),
        "limit_percent": setting.limit_percent,
        "warmup": setting.warmup,
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
    return [record, other]


def trainers(
    device: torch.device, *, folder: Path, setting: Setting
) -> dict[str, Callable[[], Trainer]]:
    """Give the factory's trainers with batches of a size."""
    documents, held_out = manual(seed=SEED)
    return pretraining.comparison(
        stacks={"vanilla": vanilla_30m, "dense": dense_a_30m, "routed": routed_a_30m},
        tokenizer=qwen_tokenizer(documents, vocabulary=8_192),
        documents=documents,
        held_out=held_out,
        folder=folder,
        parallelism=SingleProcess(device=device),
        steps=2_000,
        rows_per_step=setting.rows,
        row_length=setting.length,
        learning_rate=1e-3,
        bank_rate=1e-3,
        every=200,
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
            f"{record['overhead_percent']:.2f}% beside the bare loop{clock} "
            f"(limit {record['limit_percent']:.0f}%)"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", help="rows of a step; all sizes if absent")
    parser.add_argument("--output", type=Path, required=True, help="folder for loop_overhead.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = ON_GPU if device.type == "cuda" else ON_CPU
    records: list[Record] = []
    for setting in settings:
        if options.rows and setting.rows not in options.rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = trainers(device, folder=Path(folder), setting=setting)
            for name, compose in made.items():
                records += measure(name, compose=compose, setting=setting)
                print(table(records[-2:]), flush=True)
    name = NAME if device.type == "cuda" else f"{NAME}_cpu"
    path = options.output / f"{name}.json"
    kept = kept_records(path, records, keys=("case", "variant"))
    write_records(
        folder=options.output,
        name=name,
        device=device,
        libraries=LIBRARIES,
        records=kept + records,
    )
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
