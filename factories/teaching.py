"""How facts are taught to a memory: every value of the training, spelled out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from factories.tiny_base import manual
from factories.world import invented_facts
from memtx import MemoryAdapter
from memtx.data import Batches, Fact, FactRows, TextRows
from memtx.evaluate import FactEvaluation
from memtx.generate import padding_token
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    Checkpoints,
    DataParallel,
    FullPrecision,
    JsonLines,
    LocalityLoss,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    ProgressBar,
    SingleProcess,
    Trainer,
    WarmupCosine,
)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A model with its memory, what it is to learn and keep, and the composed training."""

    adapter: MemoryAdapter
    tokenizer: Any
    base_name: str
    new_facts: list[Fact]
    old_facts: list[Fact]
    held_out: list[str]
    trainer: Trainer


def teacher(
    *,
    adapter: MemoryAdapter,
    tokenizer: Any,
    facts: list[Fact],
    background: list[str],
    folder: Path,
    parallelism: SingleProcess | DataParallel,
    steps: int,
    learning_rate: float,
    facts_per_step: int,
    background_rows_per_step: int,
    background_row_length: int,
    locality_weight: float,
    seed: int,
) -> Trainer:
    """Compose the training of a memory on facts, held to the base on background text.

    Facts and background rows of a step are divided among the processes, so the global batch is
    the same for any number of them that divides both.
    """
    ranks = parallelism.world_size
    for name, rows in (("facts", facts_per_step), ("background rows", background_rows_per_step)):
        if rows % ranks:
            raise ValueError(
                f"teacher: the {name} of a step must divide among the processes, got {rows} for "
                f"world_size={ranks}; start another number of processes."
            )
    first = parallelism.rank == 0
    on_gpu = parallelism.device.type == "cuda"
    checkpoints = Checkpoints(model=adapter, folder=folder, every=200, keep=2)
    return Trainer(
        objective=Objective(
            model=adapter,
            terms=[
                NextTokenLoss(name="facts", stream="facts", weight=1.0, chunk=2048),
                LocalityLoss(
                    name="locality", stream="background", weight=locality_weight, chunk=2048
                ),
            ],
        ),
        streams={
            "facts": Batches(
                rows=FactRows(facts=facts, tokenizer=tokenizer),
                batch_size=facts_per_step // ranks,
                seed=seed,
                pad_token_id=padding_token(tokenizer),
            ),
            "background": Batches(
                rows=TextRows(
                    documents=background, tokenizer=tokenizer, length=background_row_length
                ),
                batch_size=background_rows_per_step // ranks,
                seed=seed + 1,
                pad_token_id=padding_token(tokenizer),
            ),
        },
        groups=[
            ParameterGroup(
                name="bank",
                modules=[adapter.banks],
                without=[],
                learning_rate=learning_rate,
                weight_decay=0.0,
            ),
            ParameterGroup(
                name="reading",
                modules=[adapter.insertions],
                without=[adapter.banks],
                learning_rate=learning_rate,
                weight_decay=0.0,
            ),
        ],
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=20, total_steps=steps, floor=0.0),
        precision=BFloat16Autocast() if on_gpu else FullPrecision(),
        parallelism=parallelism,
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[
            FactEvaluation(
                model=adapter, tokenizer=tokenizer, facts=facts[:50], batch_size=50, every=200
            )
        ],
        checkpoints=[checkpoints],
        loggers=[
            ProgressBar(title="teach", total_steps=steps),
            JsonLines(path=folder / "metrics.jsonl"),
        ]
        if first
        else [],
    )


def pretrained_lesson(
    *,
    base_name: str,
    memory: Callable[[nn.Module], MemoryAdapter],
    folder: Path,
    seed: int,
    parallelism: SingleProcess | DataParallel,
) -> Lesson:
    """Load a base by hub id or folder and compose the teaching of 200 invented facts to it."""
    _, new_facts = invented_facts(seed=seed, num_old=0, num_new=200)
    background, held_out = manual(seed=seed)
    base = AutoModelForCausalLM.from_pretrained(base_name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base_name)
    base.to(parallelism.device)
    adapter = memory(base)
    trainer = teacher(
        adapter=adapter,
        tokenizer=tokenizer,
        facts=new_facts,
        background=background,
        folder=folder / "checkpoints",
        parallelism=parallelism,
        steps=600,
        learning_rate=5e-4,
        facts_per_step=40,
        background_rows_per_step=8,
        background_row_length=512,
        locality_weight=1.0,
        seed=seed,
    )
    return Lesson(
        adapter=adapter,
        tokenizer=tokenizer,
        base_name=base_name,
        new_facts=new_facts,
        old_facts=[],
        held_out=held_out,
        trainer=trainer,
    )
