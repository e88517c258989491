"""The runs that `scaling.py` times and checks: stacks, tokens, parallelisms, and a trainer."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from factories.from_scratch import routed_a_tiny
from factories.mixture_of_chapters import with_memory
from memtx import MemoryTransformer
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    DataParallel,
    Fresh,
    FullPrecision,
    FullyShardedDataParallel,
    LayersAsUnits,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    Trainer,
    WarmupCosine,
)
from memtx.train.parallel import Parallelism
from memtx.train.precision import Precision

Compose = Callable[[], MemoryTransformer]
Way = Callable[[torch.device], Parallelism]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The stack, and how many tokens and steps it takes."""

    case: str
    compose: Compose
    rows: int
    parts: int
    length: int
    warm_up: int
    timed: int
    device: torch.device


def full_setting(*, rows: int, device: torch.device) -> Setting:
    """The stack of the paper on rows of 1,024 tokens."""
    return Setting(
        case=f"mixture-of-chapters 371M {rows} x 1024 a process bf16",
        compose=with_memory,
        rows=rows,
        parts=1,
        length=1_024,
        warm_up=4,
        timed=12,
        device=device,
    )


def tiny_setting(*, rows: int, device: torch.device) -> Setting:
    """The same at a size for CPUs: it shows that the script runs, and measures nothing."""
    return Setting(
        case=f"tiny stack {rows} x 32 a process bf16",
        compose=routed_a_tiny,
        rows=rows,
        parts=1,
        length=32,
        warm_up=1,
        timed=2,
        device=device,
    )


class RandomTokens:
    """Rows of random tokens: what one process sees in a batch, several see in `parts`."""

    def __init__(self, *, vocab_size: int, rows: int, parts: int, length: int) -> None:
        self.vocab_size = vocab_size
        self.rows = rows
        self.parts = parts
        self.length = length
        self._next = 0

    def next_batch(self, *, rank: int, world_size: int) -> dict[str, Tensor]:
        """Give this process's batch, and go past those of all."""
        first = self._next + rank * self.parts
        self._next += world_size * self.parts
        ids = torch.cat([self._part(number) for number in range(first, first + self.parts)])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def _part(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randint(self.vocab_size, (self.rows, self.length), generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Give the number of the next part."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a part."""
        self._next = state["next"]


def sharded(*, reshard: bool, dtype: torch.dtype | None) -> Way:
    """Give full sharding by layers; a dtype is that of gathered parameters."""
    return lambda device: FullyShardedDataParallel(
        device=device,
        units=LayersAsUnits(),
        param_dtype=dtype,
        reduce_dtype=None if dtype is None else torch.float32,
        reshard_after_forward=reshard,
    )


WAYS: dict[str, tuple[Way, Precision]] = {
    "ddp": (lambda device: DataParallel(device=device), BFloat16Autocast()),
    "fsdp2": (sharded(reshard=True, dtype=None), BFloat16Autocast()),
    "fsdp2-kept": (sharded(reshard=False, dtype=None), BFloat16Autocast()),
    "fsdp2-bf16": (sharded(reshard=True, dtype=torch.bfloat16), FullPrecision()),
}


def trainer_of(
    *, setting: Setting, parallelism: Parallelism, precision: Precision, steps: int
) -> Trainer:
    """Compose a run of a fresh model."""
    torch.manual_seed(0)
    with setting.device:
        model = setting.compose()
    term = NextTokenLoss(name="text", stream="text", weight=1.0, chunk=4_096)
    group = ParameterGroup(
        name="all", modules=[model], without=[], learning_rate=3e-4, weight_decay=0.1
    )
    stream = RandomTokens(
        vocab_size=model.embedding.vocab_size,
        rows=setting.rows,
        parts=setting.parts,
        length=setting.length,
    )
    return Trainer(
        objective=Objective(model=model, terms=[term]),
        streams={"text": stream},
        groups=[group],
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=0, total_steps=steps, floor=1.0),
        precision=precision,
        parallelism=parallelism,
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=[],
        checkpoints=[],
        loggers=[],
    )


def together() -> None:
    """Wait for all processes, without a GPU: what waits must not be in the way of what runs."""
    dist.all_reduce(torch.zeros(1))


def clean(device: torch.device) -> None:
    """Give memory back between runs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
