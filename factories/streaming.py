"""Training a stack on a stream of text that is packed as it comes: every value spelled out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from factories.from_scratch import routed_a_30m, routed_a_tiny
from factories.pretraining import Stack, groups
from factories.tiny_base import qwen_tokenizer
from memtx.data import (
    Documents,
    FullRows,
    ShuffleBuffer,
    Shuffled,
    SplitLong,
    StreamBatches,
    TextEncoder,
)
from memtx.data.protocols import Source
from memtx.evaluate import TextEvaluation
from memtx.generate import padding_token
from memtx.train import (
    AdamW,
    BestCheckpoint,
    BFloat16Autocast,
    DataParallel,
    ExplodingLoss,
    FullPrecision,
    FullyShardedDataParallel,
    JsonLines,
    Logger,
    Lower,
    NextTokenLoss,
    Objective,
    ProgressBar,
    ResumeIfAny,
    RouterHealth,
    RunCheckpoints,
    Saver,
    SingleProcess,
    Trainer,
    WarmupStableDecay,
    rows_per_process,
)

Parallelism = SingleProcess | DataParallel | FullyShardedDataParallel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stack, and how long it is trained on how much text at a time."""

    compose: Callable[[], Stack]
    vocabulary: int
    row_length: int
    rows_per_step: int
    steps: int
    every: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A stack, its tokenizer, and the composed training of it on a text."""

    model: Stack
    tokenizer: Any
    trainer: Trainer


def corpus(
    source: Source, *, field: str, tokenizer: Any, length: int, batch_size: int, seed: int
) -> StreamBatches:
    """Give full rows of the documents of a dataset, in random order as far as a buffer reaches."""
    return StreamBatches(
        documents=ShuffleBuffer(
            documents=Documents(
                source=source,
                encoder=TextEncoder(tokenizer=tokenizer, field=field),
                limit=SplitLong(length=length),
                num_workers=1,
                chunk=64,
            ),
            size=256,
            seed=seed,
        ),
        packing=FullRows(length=length),
        batch_size=batch_size,
        pad_token_id=padding_token(tokenizer),
    )


def held_out_loss(
    model: Stack, *, plan: Plan, documents: list[str], tokenizer: Any
) -> TextEvaluation:
    """Measure the loss on documents that are not trained on."""
    return TextEvaluation(
        model=model,
        tokenizer=tokenizer,
        documents=documents,
        max_length=plan.row_length,
        batch_size=8,
        every=plan.every,
    )


def checkpoints(model: Stack, *, plan: Plan, folder: Path) -> list[Saver]:
    """Save the whole run to go on from, and the model that does best on what is held out."""
    return [
        RunCheckpoints(folder=folder / "run", every=plan.every, keep=2),
        BestCheckpoint(
            model=model,
            folder=folder / "best",
            number="held_out",
            better=Lower(by=0.0),
            every=plan.every,
        ),
    ]


def streamer(
    *,
    model: Stack,
    plan: Plan,
    source: Source,
    field: str,
    held_out: list[str],
    tokenizer: Any,
    folder: Path,
    parallelism: Parallelism,
    seed: int,
) -> Trainer:
    """Compose the training of a stack on a source; started again, it goes on where it was saved."""
    loggers: list[Logger] = [
        ProgressBar(title="pretrain", total_steps=plan.steps),
        JsonLines(path=folder / "metrics.jsonl"),
    ]
    return Trainer(
        objective=Objective(
            model=model,
            terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=4096)],
        ),
        streams={
            "text": corpus(
                source,
                field=field,
                tokenizer=tokenizer,
                length=plan.row_length,
                batch_size=rows_per_process(plan.rows_per_step, parallelism=parallelism),
                seed=seed,
            )
        },
        groups=groups(model, learning_rate=plan.learning_rate, bank_rate=plan.learning_rate),
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupStableDecay(
            warmup_steps=plan.steps // 20,
            decay_steps=plan.steps // 5,
            total_steps=plan.steps,
            floor=0.0,
        ),
        precision=BFloat16Autocast() if parallelism.device.type == "cuda" else FullPrecision(),
        parallelism=parallelism,
        start=ResumeIfAny(folder=folder / "run"),
        steps=plan.steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[held_out_loss(model, plan=plan, documents=held_out, tokenizer=tokenizer)],
        callbacks=[
            ExplodingLoss(factor=3.0, window=20),
            RouterHealth(
                model=model, every=plan.every, min_choices=10.0, min_entropy=0.5, remedies=[]
            ),
        ],
        checkpoints=checkpoints(model, plan=plan, folder=folder),
        loggers=loggers if parallelism.rank == 0 else [],
    )


def tiny() -> Plan:
    """Train a routed stack of a million parameters: two minutes on one core."""
    return Plan(
        compose=routed_a_tiny,
        vocabulary=2_048,
        row_length=128,
        rows_per_step=8,
        steps=240,
        every=40,
        learning_rate=4e-3,
    )


def thirty_million() -> Plan:
    """Train a routed stack of thirty million parameters, on a GPU and a text of its size."""
    return Plan(
        compose=routed_a_30m,
        vocabulary=8_192,
        row_length=512,
        rows_per_step=32,
        steps=2_000,
        every=200,
        learning_rate=1e-3,
    )


def on_text(
    plan: Plan,
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: Parallelism,
) -> Pretraining:
    """Compose the training of a plan on texts that are at hand, with a tokenizer made of them."""
    tokenizer = qwen_tokenizer(documents, vocabulary=plan.vocabulary)
    model = plan.compose()
    trainer = streamer(
        model=model,
        plan=plan,
        source=Shuffled(rows=Dataset.from_list([{"text": text} for text in documents]), seed=seed),
        field="text",
        held_out=held_out,
        tokenizer=tokenizer,
        folder=folder,
        parallelism=parallelism,
        seed=seed,
    )
    return Pretraining(model=model, tokenizer=tokenizer, trainer=trainer)


def tiny_run(
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: Parallelism,
) -> Pretraining:
    """Train the plan `tiny` on texts; started again with the same folder, it goes on."""
    return on_text(
        tiny(),
        documents=documents,
        held_out=held_out,
        folder=folder,
        seed=seed,
        parallelism=parallelism,
    )


def thirty_million_run(
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: Parallelism,
) -> Pretraining:
    """Train the plan `thirty_million` on texts; started again, it goes on."""
    return on_text(
        thirty_million(),
        documents=documents,
        held_out=held_out,
        folder=folder,
        seed=seed,
        parallelism=parallelism,
    )
