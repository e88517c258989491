"""What `scaling.py` checks besides: gradients of a shared bank, and a checkpoint's round trip."""

import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.records import Record
from benchmarks.scaling_runs import WAYS, Setting, clean, tiny_setting, together, trainer_of
from factories.from_scratch import routed_a_tiny
from memtx import MemoryTransformer
from memtx.train import (
    AdamW,
    FullPrecision,
    ParameterGroup,
    Resume,
    RunCheckpoints,
    SingleProcess,
    Trainer,
)
from memtx.train.parallel import Parallelism
from memtx.train.precision import Precision
from memtx.train.run import Run


class StopBehind:
    """A callback that ends a run behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Run, record: Record) -> None:
        """End the run if this was the step."""
        run.stop = "the save is due" if run.step == self.step else run.stop

    def state_dict(self) -> dict[str, object]:
        """Nothing is to be known of it."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing is to be taken up."""


class AtTheEnd:
    """A callback that keeps a copy of weights and optimizer behind the last step."""

    def __init__(self) -> None:
        self.state: list[Tensor] = []

    def after_step(self, run: Run, record: Record) -> None:
        """Copy, if it was the last step."""
        if run.step == run.steps:
            self.state = copies(run)

    def state_dict(self) -> dict[str, object]:
        """Nothing is to be known of it."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing is to be taken up."""


class Timed:
    """A saver that is timed, and keeps a copy of what it was given."""

    def __init__(self, saver: RunCheckpoints) -> None:
        self.saver = saver
        self.state: list[Tensor] = []
        self.milliseconds = 0.0
        self.written_milliseconds = 0.0

    def is_due(self, step: int) -> bool:
        """As the saver says."""
        return self.saver.is_due(step)

    def save(self, run: Run, record: Record) -> None:
        """Save, and copy."""
        self.state = copies(run)
        started = time.perf_counter()
        self.saver.save(run, record)
        self.milliseconds = 1000.0 * (time.perf_counter() - started)

    def close(self) -> None:
        """Wait until it is written."""
        started = time.perf_counter()
        self.saver.close()
        self.written_milliseconds = 1000.0 * (time.perf_counter() - started)


class Compared:
    """A start that is timed, and counts the numbers that are not those of a copy."""

    def __init__(self, *, start: Resume, state: list[Tensor]) -> None:
        self.start = start
        self.state = state
        self.compared = 0
        self.different = 0
        self.milliseconds = 0.0

    def begin(self, run: Run) -> None:
        """Bring the run to its start, and compare."""
        started = time.perf_counter()
        self.start.begin(run)
        self.milliseconds = 1000.0 * (time.perf_counter() - started)
        self.compared = sum(each.numel() for each in self.state)
        self.different = different(copies(run), self.state)


class Noting:
    """AdamW that notes the gradients of a step, whole."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.noted: dict[str, Tensor] = {}

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make it."""
        made = AdamW(betas=(0.9, 0.95), eps=1e-8).make(groups)
        made.register_step_pre_hook(self.note)
        return made

    def note(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Gather and copy every gradient."""
        for key, parameter in self.trainer.objective.model.named_parameters():
            gradient: Any = parameter.grad
            self.noted[key] = whole(gradient).detach().clone()


def whole(tensor: Any) -> Tensor:
    """Give a tensor with all its parts."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(*, setting: Setting, parallelism: Parallelism) -> dict[str, Tensor]:
    """Give the gradients of the first step in float32, before they are clipped."""
    noting = Noting()
    plain = trainer_of(setting=setting, parallelism=parallelism, precision=FullPrecision(), steps=1)
    noting.trainer = replace(plain, optimizer=noting, clip_norm=math.inf)
    noting.trainer.run()
    return noting.noted


def stirred() -> MemoryTransformer:
    """Compose a small stack whose bank two blocks read, with no zero that memory starts with."""
    model = routed_a_tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def small_setting(device: torch.device) -> Setting:
    """Give it two rows a process."""
    return replace(tiny_setting(rows=2, device=device), compose=stirred)


def gradients_alone(device: torch.device, *, processes: int) -> dict[str, Tensor]:
    """Give the gradients of a small stack with a shared bank by one process with all the rows."""
    setting = replace(small_setting(device), parts=processes)
    return gradients(setting=setting, parallelism=SingleProcess(device=device))


def gradient_check(device: torch.device, *, wanted: dict[str, Tensor]) -> list[Record]:
    """Compare gradients of that stack with those of one process, in the first process."""
    size, small = dist.get_world_size(), small_setting(device)
    found = []
    for name in ("ddp", "fsdp2"):
        make, _ = WAYS[name]
        given = gradients(setting=small, parallelism=make(device))
        record: Record = {"case": "shared-bank-gradient", "variant": name, "processes": size}
        errors = {
            key: ((given[key] - each).abs().max() / each.abs().max()).item()
            for key, each in wanted.items()
        }
        if errors:
            worst = max(errors, key=lambda key: errors[key])
            bank = max(error for key, error in errors.items() if key.startswith("banks."))
            record |= {"relative_error": errors[worst], "of": worst, "bank_error": bank}
        found.append(record)
        clean(device)
    return found


def shared_folder() -> Path:
    """Give a new folder of this node that all its processes know, made by the first."""
    name = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(name, src=0)
    return Path(str(name[0]))


def state_of(run: Run) -> list[Tensor]:
    """Give this process's parts of weights and optimizer."""
    kept = [run.optimizer.state.get(p, {}) for p in run.objective.parameters()]
    tensors = [*run.objective.parameters(), *(each[key] for each in kept for key in sorted(each))]
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def copies(run: Run) -> list[Tensor]:
    """Give copies of them on the CPU."""
    return [each.detach().to("cpu", copy=True) for each in state_of(run)]


def different(some: list[Tensor], others: list[Tensor]) -> int:
    """Give how many numbers are not the same bit for bit."""
    return sum(int((one != other).sum()) for one, other in zip(some, others, strict=True))


@contextmanager
def reproducible() -> Iterator[None]:
    """Let torch add in one order where it can: else two runs differ that nobody stopped."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def round_trip(setting: Setting, *, ways: Sequence[str]) -> list[Record]:
    """Save a run in the midst; bring a new model to where it was saved, and go on to the end."""
    found = []
    for name in ways:
        make, precision = WAYS[name]
        folder = shared_folder()
        try:
            with reproducible():
                record = _round_trip(
                    setting, parallelism=make(setting.device), precision=precision, folder=folder
                )
        finally:
            together()
            if dist.get_rank() == 0:
                shutil.rmtree(folder)
        size = dist.get_world_size()
        found.append({"case": "checkpoint-round-trip", "variant": name, "processes": size} | record)
        clean(setting.device)
    return found


def _round_trip(
    setting: Setting, *, parallelism: Parallelism, precision: Precision, folder: Path
) -> Record:
    """Five steps at once, against some, a save, and the others by a new model."""

    def trainer() -> Trainer:
        clean(setting.device)
        return trainer_of(setting=setting, parallelism=parallelism, precision=precision, steps=5)

    whole_run, rest = AtTheEnd(), AtTheEnd()
    wanted = replace(trainer(), callbacks=[whole_run]).run()
    saver = Timed(RunCheckpoints(folder=folder, every=1_000, keep=1))
    replace(trainer(), callbacks=[StopBehind(2)], checkpoints=[saver]).run()
    start = Compared(start=Resume(folder=folder), state=saver.state)
    with warnings.catch_warnings():
        # The callback is another one.
        warnings.filterwarnings("ignore", message="Resume: ", category=UserWarning)
        given = replace(trainer(), start=start, callbacks=[rest]).run()
    pairs = [(record, wanted[int(record["step"]) - 1]) for record in given]
    at_the_end = different(rest.state, whole_run.state)
    counts = parallelism.all_sum(torch.tensor([start.compared, start.different, at_the_end]))
    return {
        "milliseconds": saver.milliseconds,
        "written_milliseconds": saver.written_milliseconds,
        "resumed_milliseconds": start.milliseconds,
        "compared": int(counts[0]),
        "different": int(counts[1]),
        "different_at_the_end": int(counts[2]),
        "steps_after": len(given),
        "loss_difference": max(abs(one["loss"] - other["loss"]) for one, other in pairs),
    }
