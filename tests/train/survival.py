"""Runs that are killed and go on, in real processes: how they are started and compared.

Processes are forked off a server that has imported everything, so that one takes a moment.
"""

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it: once for all that are forked, then

from memtx.spec.processes import whole
from memtx.train import LayersAsUnits, Trainer, launched, launched_sharded
from tests.train.survivors import EVERY, STEPS, Job, trainer

DROPOUT = 0.2


def placed(job: Job) -> AbstractContextManager[Any]:
    """The processes of a job."""
    if job.kind != "sharded":
        return launched()
    return launched_sharded(
        units=LayersAsUnits(),
        param_dtype=torch.bfloat16 if job.bf16 else None,
        reduce_dtype=torch.float32 if job.bf16 else None,
        reshard_after_forward=True,
    )


def digest(module: torch.nn.Module) -> str:
    """A hash of all parameters, whole."""
    found = hashlib.sha256()
    for name, parameter in module.named_parameters():
        found.update(name.encode() + whole(parameter).cpu().numpy().tobytes())
    return found.hexdigest()


def told(*, made: Trainer, records: list[dict[str, float]]) -> dict[str, Any]:
    """What a run that is done can be told from another by: numbers, weights, next batch."""
    place = made.parallelism
    batch = made.streams["text"].next_batch(rank=place.rank, world_size=place.world_size)
    timed = ("tokens_per_second", "step_seconds", "data_seconds")
    return {
        "records": [{k: v for k, v in each.items() if k not in timed} for each in records],
        "weights": digest(made.objective),
        "next": {name: tensor.tolist() for name, tensor in batch.items()},
        "random": torch.rand(1).item(),
        "begun": made.start.begun,
    }


def work(job: Job, rank: int, port: int) -> None:
    """What one process does."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if job.processes > 1 or job.kind == "sharded":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(job.processes), "MASTER_ADDR": "127.0.0.1"}
    with placed(job) as parallelism:
        made = trainer(job=job, parallelism=parallelism)
        # Each process drops out by numbers of its own.
        torch.manual_seed(100 + rank)
        records = made.run()
        found = told(made=made, records=records)
    path = job.folder.parent / f"{job.name}-{rank}.json"
    path.write_text(json.dumps(found), encoding="utf-8")


def main(folder: Path) -> None:
    """What each process of `torchrun` does: a run that lasts until it is asked to stop."""
    job = whole_run(folder, kind="data-parallel", bf16=False, processes=2)
    job = replace(job, folder=folder / "ended", wait=0.3)
    with placed(job) as parallelism:
        made = trainer(job=job, parallelism=parallelism)
        # It is asked to end as well: torchrun asks all processes of its processes.
        made.streams["text"].documents.documents.num_workers = 1
        torch.manual_seed(100 + parallelism.rank)
        made.run()


def start(job: Job) -> list[BaseProcess]:
    """Start the processes of a job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=work, args=(job, rank, port)) for rank in range(job.processes)
    ]
    for each in processes:
        each.start()
    return processes


def finish(job: Job) -> list[int | None]:
    """Run a job to its end, and give what its processes exited with."""
    processes = start(job)
    for each in processes:
        each.join(60)
        each.kill()
    return [each.exitcode for each in processes]


def found(job: Job) -> list[dict[str, Any]]:
    """Run a job that must end well, and give what each of its processes told."""
    codes = finish(job)
    assert codes == [0] * job.processes, codes
    paths = [job.folder.parent / f"{job.name}-{rank}.json" for rank in range(job.processes)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def copied(folder: Path, *, name: str) -> Path:
    """A copy of a folder of checkpoints, beside it."""
    target = folder.parent / name
    shutil.copytree(folder, target)
    return target


def whole_run(folder: Path, *, kind: str, bf16: bool, processes: int) -> Job:
    """A run that is left alone; `dataclasses.replace` makes it another."""
    return Job(
        folder=folder / "alone",
        kind=kind,
        bf16=bf16,
        start="fresh",
        blow=None,
        name="whole",
        processes=processes,
        dropout=DROPOUT,
        wait=0.0,
    )


def resumed_after(job: Job, *, blow: tuple[int, int, int]) -> tuple[list[int | None], Job]:
    """Start a job's run again elsewhere, let the blow end it, and give the job that goes on."""
    folder = job.folder.parent / "ended"
    codes = finish(replace(job, folder=folder, blow=blow, name="ended"))
    return codes, replace(job, folder=folder, start="resume", name="resumed")


def require_exact(expected: list[dict[str, Any]], given: list[dict[str, Any]]) -> int:
    """Compare a run that went on with one that was left alone, bit for bit.

    Gives the step at which it went on.
    """
    steps = len(given[0]["records"])
    assert 0 < steps < STEPS
    for one, other in zip(expected, given, strict=True):
        assert all(math.isfinite(each["loss"]) for each in one["records"])
        assert other["records"] == one["records"][-steps:]
        assert {**other, "records": [], "begun": {}} == {**one, "records": [], "begun": {}}
    return STEPS - steps


def require_survival(folder: Path, *, kind: str, bf16: bool, processes: int) -> None:
    """Kill a run at a random step, go on, and compare with one that was left alone."""
    numbers = hashlib.sha256(f"{kind} {bf16}".encode()).digest()
    # By then the first save is on the disk: the second one waited for it.
    blow = (5 + numbers[0] % 5, numbers[1] % processes, signal.SIGKILL)
    job = whole_run(folder, kind=kind, bf16=bf16, processes=processes)
    codes, resumed = resumed_after(job, blow=blow)
    assert codes[blow[1]] == -signal.SIGKILL, codes
    assert 0 not in codes, codes
    assert require_exact(found(job), found(resumed)) % EVERY == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
