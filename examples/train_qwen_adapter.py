"""Teach a memory in a frozen Qwen 200 invented facts, then ask it from a fresh process.

    python examples/train_qwen_adapter.py
    torchrun --nproc_per_node=2 examples/train_qwen_adapter.py
    torchrun --nproc_per_node=8 examples/train_qwen_adapter.py factories.qwen_adapter:qwen2_5_1_5b

The one argument is the factory to run; with none a tiny base is made first, offline.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from factories.teaching import Lesson
from memtx import save
from memtx.evaluate import text_loss
from memtx.train import DataParallel, SingleProcess, launched
from memtx.train.groups import group_table

FACTORY = "factories.qwen_adapter:tiny"
SEED = int(os.environ.get("MEMTX_SEED", "0"))
FOLDER = Path("runs")
MAX_LENGTH = 256
BATCH_SIZE = 8


def factory(name: str) -> Callable[..., Lesson]:
    """Find a factory by `module:function`."""
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Lesson] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        sys.exit(
            f"train_qwen_adapter: the argument must be module:function of a factory, got {name!r} "
            f"({error}); try {FACTORY}."
        )
    return found


def teach(name: str, *, folder: Path, parallelism: SingleProcess | DataParallel) -> None:
    """Compose the lesson, teach it, and leave memory and record in the folder."""
    first = parallelism.rank == 0
    torch.manual_seed(SEED)
    started = time.perf_counter()
    lesson = factory(name)(folder=folder, seed=SEED, parallelism=parallelism)
    composed = time.perf_counter()
    with lesson.adapter.disabled():
        before = text_loss(
            model=lesson.adapter,
            tokenizer=lesson.tokenizer,
            documents=lesson.held_out,
            max_length=MAX_LENGTH,
            batch_size=BATCH_SIZE,
        )
    if first:
        print(group_table(lesson.trainer.groups), flush=True)
    teaching = time.perf_counter()
    lesson.trainer.run()
    if not first:
        return
    save(lesson.adapter, folder / "memory")
    record = {
        "factory": name,
        "seed": SEED,
        "base": lesson.base_name,
        "memory": str(folder / "memory"),
        "processes": parallelism.world_size,
        "threads": torch.get_num_threads(),
        "seconds_for_base": composed - started,
        "seconds_of_teaching": time.perf_counter() - teaching,
        "old_text_loss_before": before.mean,
        "max_length": MAX_LENGTH,
        "batch_size": BATCH_SIZE,
        "new_facts": [asdict(fact) for fact in lesson.new_facts],
        "old_facts": [asdict(fact) for fact in lesson.old_facts],
        "held_out": lesson.held_out,
    }
    (folder / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def main() -> None:
    """Teach, then report from a process that knows only what was saved."""
    if len(sys.argv) > 2:
        sys.exit("train_qwen_adapter: takes at most one argument, the factory as module:function.")
    name = sys.argv[1] if len(sys.argv) == 2 else FACTORY
    folder = FOLDER / name.partition(":")[2]
    with launched() as parallelism:
        teach(name, folder=folder, parallelism=parallelism)
    if parallelism.rank == 0:
        report = Path(__file__).with_name("report.py")
        subprocess.run([sys.executable, str(report), str(folder)], check=True)


if __name__ == "__main__":
    main()
