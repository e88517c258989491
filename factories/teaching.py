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
    Fresh,
    FullPrecision,
    JsonLines,
    LocalityLoss,
    Logger,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    ProgressBar,
    SingleProcess,
    Trainer,
    WarmupCosine,
    rows_per_process,
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


def background_rows(
    *, documents: list[str], keep: list[Fact], tokenizer: Any, length: int
) -> list[dict[str, list[int]]]:
    """Give rows of running text and, one row in four, facts to keep, asked as new ones are.

    Text alone protects text: prompts of the very form that is taught need prompts of that form.
    """
    text = TextRows(documents=documents, tokenizer=tokenizer, length=length)
    rows = [text[number] for number in range(len(text))]
    if not keep:
        return rows
    kept = FactRows(facts=keep, tokenizer=tokenizer)
    return rows + [kept[number % len(kept)] for number in range(len(rows) // 3)]


def memory_groups(adapter: MemoryAdapter, *, learning_rate: float) -> list[ParameterGroup]:
    """Give the memory tokens and the parts that read them as two groups."""
    return [
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
    ]


def teacher(
    *,
    adapter: MemoryAdapter,
    tokenizer: Any,
    facts: list[Fact],
    background: list[dict[str, list[int]]],
    folder: Path,
    parallelism: SingleProcess | DataParallel,
    steps: int,
    learning_rate: float,
    facts_per_step: int,
    background_per_step: int,
    locality_weight: float,
    seed: int,
) -> Trainer:
    """Compose the training of a memory on facts, held to the base on background rows."""
    objective = Objective(
        model=adapter,
        terms=[
            NextTokenLoss(name="facts", stream="facts", weight=1.0, chunk=2048),
            LocalityLoss(name="locality", stream="background", weight=locality_weight, chunk=2048),
        ],
    )
    streams = {
        "facts": Batches(
            rows=FactRows(facts=facts, tokenizer=tokenizer),
            batch_size=rows_per_process(facts_per_step, parallelism=parallelism),
            seed=seed,
            pad_token_id=padding_token(tokenizer),
        ),
        "background": Batches(
            rows=background,
            batch_size=rows_per_process(background_per_step, parallelism=parallelism),
            seed=seed + 1,
            pad_token_id=padding_token(tokenizer),
        ),
    }
    evaluation = FactEvaluation(
        model=adapter, tokenizer=tokenizer, facts=facts[:50], batch_size=50, every=200
    )
    loggers: list[Logger] = [
        ProgressBar(title="teach", total_steps=steps),
        JsonLines(path=folder / "metrics.jsonl"),
    ]
    return Trainer(
        objective=objective,
        streams=streams,
        groups=memory_groups(adapter, learning_rate=learning_rate),
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=min(20, steps // 10), total_steps=steps, floor=0.0),
        precision=BFloat16Autocast() if parallelism.device.type == "cuda" else FullPrecision(),
        parallelism=parallelism,
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[evaluation],
        callbacks=[],
        checkpoints=[Checkpoints(model=adapter, folder=folder, every=200, keep=2)],
        loggers=loggers if parallelism.rank == 0 else [],
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
    base: nn.Module = AutoModelForCausalLM.from_pretrained(base_name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base_name)
    base.to(parallelism.device)
    adapter = memory(base)
    trainer = teacher(
        adapter=adapter,
        tokenizer=tokenizer,
        facts=new_facts,
        background=background_rows(documents=background, keep=[], tokenizer=tokenizer, length=512),
        folder=folder / "checkpoints",
        parallelism=parallelism,
        steps=600,
        learning_rate=5e-4,
        facts_per_step=40,
        background_per_step=8,
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
