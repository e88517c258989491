"""Runs that are killed and go on, in real processes: what each of them does, and how to start them.

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
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from memtx import (
    MemoryBlock,
    MemoryCrossAttention,
    MemoryTransformer,
    Normal,
    Residual,
    RMSNorm,
    RotaryEmbedding,
    SelfAttention,
    TiedHead,
    TokenEmbedding,
)
from memtx.data import Documents, FullRows, RefuseLong, ShuffleBuffer, Streamed, StreamBatches
from memtx.data import TokensEncoder
from memtx.spec.processes import whole
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    Fresh,
    FullPrecision,
    LayersAsUnits,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    Resume,
    ResumeIfAny,
    RunCheckpoints,
    Trainer,
    WarmupCosine,
    launched,
    launched_sharded,
)
from memtx.train.run_state import shared_values, tensors_of
from tests import parts

STEPS, EVERY = 9, 2
DIM, VOCABULARY, ROWS, LENGTH = 16, 61, 4, 24
DROPOUT = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: how it is made, where it starts, and when it is killed."""

    folder: Path
    kind: str  # alone, data-parallel or sharded
    bf16: bool
    start: str  # fresh, resume or either
    blow: tuple[int, int, int] | None  # after which step, to which process, and which signal
    name: str  # of the files that tell what it did
    processes: int
    dropout: float


class Blow:
    """A callback that sends its own process a signal after a step."""

    def __init__(self, *, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def after_step(self, run, record) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), self.number)

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


class Counting:
    """A callback that remembers something."""

    def __init__(self) -> None:
        self.total = 0.0

    def after_step(self, run, record) -> None:
        self.total += record["loss"]
        record["total"] = self.total

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state) -> None:
        self.total = state["total"]


class Noting:
    """A start that notes where it brought the run: weights, moments, position, all of it whole."""

    def __init__(self, *, start: Any) -> None:
        self.start = start
        self.begun: dict[str, Any] = {}

    def begin(self, run) -> None:
        self.start.begin(run)
        tensors, values = tensors_of(run)
        found = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            found.update(name.encode() + whole(tensor).numpy().tobytes())
        shared = json.loads(json.dumps(shared_values(run)))
        self.begun = {"tensors": found.hexdigest(), "values": values, "shared": shared}


def model(*, seed: int, dropout: float) -> MemoryTransformer:
    """Two of three blocks read one bank; attention and reading drop out."""
    torch.manual_seed(seed)
    bank = parts.bank_of(7, DIM)
    rotary = RotaryEmbedding(head_dim=4, max_positions=64, base=10_000.0)
    embedding = TokenEmbedding(vocab_size=VOCABULARY, dim=DIM, init=Normal(std=0.5))

    def attend() -> Residual:
        attention = SelfAttention(
            q_proj=parts.linear(DIM, DIM),
            k_proj=parts.linear(DIM, DIM // 2),
            v_proj=parts.linear(DIM, DIM // 2),
            o_proj=parts.linear(DIM, DIM),
            num_heads=4,
            num_kv_heads=2,
            rotary=rotary,
            dropout=dropout,
        )
        return Residual(norm=RMSNorm(dim=DIM, eps=1e-5), sublayer=attention)

    def read() -> Residual:
        arguments = parts.read_arguments(DIM) | {"bank": bank, "dropout": dropout}
        sublayer = MemoryCrossAttention(**arguments)
        return Residual(norm=RMSNorm(dim=DIM, eps=1e-5), sublayer=sublayer)

    layers = [[attend(), read()], [attend(), parts.think(DIM)], [attend(), read()]]
    made = MemoryTransformer(
        embedding=embedding,
        banks=[bank],
        layers=[MemoryBlock(sublayers=each) for each in layers],
        norm=RMSNorm(dim=DIM, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def stream(*, batch_size: int) -> StreamBatches:
    """Documents of unequal length: streamed, shuffled through a buffer, laid into full rows."""
    lengths = [3 + (7 * number) % 19 for number in range(40)]
    rows = [{"ids": [1 + (n * 5 + k) % 60 for k in range(size)]} for n, size in enumerate(lengths)]
    documents = Documents(
        source=Streamed(dataset=Dataset.from_list(rows).to_iterable_dataset()),
        encoder=TokensEncoder(input_ids="ids", labels=None),
        limit=RefuseLong(length=64),
        num_workers=0,
        chunk=3,
    )
    return StreamBatches(
        documents=ShuffleBuffer(documents=documents, size=8, seed=0),
        packing=FullRows(length=LENGTH),
        batch_size=batch_size,
        pad_token_id=0,
    )


def trainer(*, job: Job, parallelism: Any) -> Trainer:
    """A run of packed text; `dataclasses.replace` makes it another."""
    made = model(seed=0, dropout=job.dropout)
    embedding = made.embedding
    step, victim, number = job.blow or (0, 0, 0)
    starts = {
        "fresh": Fresh(),
        "resume": Resume(folder=job.folder),
        "either": ResumeIfAny(folder=job.folder),
    }
    return Trainer(
        objective=Objective(
            model=made, terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=64)]
        ),
        streams={"text": stream(batch_size=ROWS // job.processes)},
        groups=[
            ParameterGroup(
                name="rest",
                modules=[made],
                without=[embedding],
                learning_rate=1e-2,
                weight_decay=0.1,
            ),
            ParameterGroup(
                name="embedding",
                modules=[embedding],
                without=[],
                learning_rate=3e-3,
                weight_decay=0.0,
            ),
        ],
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=2, total_steps=STEPS, floor=0.1),
        # Sharded, the units compute in the dtype they are gathered in.
        precision=BFloat16Autocast() if job.bf16 and job.kind != "sharded" else FullPrecision(),
        parallelism=parallelism,
        start=Noting(start=starts[job.start]),
        steps=STEPS,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=[Counting(), Blow(step=step if parallelism.rank == victim else 0, number=number)],
        checkpoints=[RunCheckpoints(folder=job.folder, every=EVERY, keep=9)],
        loggers=[],
    )


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
        found.update(name.encode() + whole(parameter).numpy().tobytes())
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
