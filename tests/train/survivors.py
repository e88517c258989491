"""The runs that are killed: what they train, on what, and what happens to them.

`tests.train.survival` starts their processes.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
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
from memtx.data import (
    Documents,
    FullRows,
    RefuseLong,
    ShuffleBuffer,
    StreamBatches,
    Streamed,
    TokensEncoder,
)
from memtx.spec.processes import whole
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    Fresh,
    FullPrecision,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    Resume,
    ResumeIfAny,
    RunCheckpoints,
    Trainer,
    WarmupCosine,
)
from memtx.train.run_state import shared_values, tensors_of
from tests import parts

STEPS, EVERY = 9, 2
DIM, VOCABULARY, ROWS, LENGTH = 16, 61, 4, 24


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
    wait: float  # seconds after each step


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


class Waiting:
    """A callback that takes its time."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds

    def after_step(self, run, record) -> None:
        time.sleep(self.seconds)

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
            found.update(name.encode() + whole(tensor).cpu().numpy().tobytes())
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
        callbacks=[
            Counting(),
            Blow(step=step if parallelism.rank == victim else 0, number=number),
            Waiting(seconds=job.wait),
        ],
        checkpoints=[RunCheckpoints(folder=job.folder, every=EVERY, keep=9)],
        loggers=[],
    )
