"""How conversations are taught to a memory in a frozen model: every value spelled out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factories.teaching import memory_groups
from memtx import MemoryAdapter
from memtx.data import (
    Batches,
    ChatEncoder,
    CutLong,
    Documents,
    OnePerRow,
    PlainTemplate,
    ShuffleBuffer,
    Shuffled,
    StreamBatches,
    TextRows,
    TokenizerTemplate,
    WholeDocuments,
)
from memtx.data.protocols import Layout, Template
from memtx.evaluate import TextEvaluation
from memtx.generate import padding_token
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    DataParallel,
    FullPrecision,
    FullyShardedDataParallel,
    JsonLines,
    LocalityLoss,
    Logger,
    NextTokenLoss,
    Objective,
    ProgressBar,
    ResumeIfAny,
    RunCheckpoints,
    SingleProcess,
    Trainer,
    WarmupCosine,
    rows_per_process,
)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a memory is taught, what it is held to, and how long."""

    rows: Any
    layout: Layout
    background: list[str]
    held_out: list[str]
    steps: int
    row_length: int
    rows_per_step: int


def template_of(tokenizer: Any) -> Template:
    """Give the tokenizer's own chat template, or a plain one where it has none."""
    if tokenizer.chat_template:
        return TokenizerTemplate(tokenizer=tokenizer)
    return PlainTemplate(
        tokenizer=tokenizer,
        headings={"system": "", "user": "### User:\n", "assistant": "### Assistant:\n"},
        separator="\n\n",
    )


def conversations(
    rows: Any, *, layout: Layout, tokenizer: Any, length: int, batch_size: int, seed: int
) -> StreamBatches:
    """Give packed rows of whole conversations; what is longer than a row keeps its beginning."""
    return StreamBatches(
        documents=ShuffleBuffer(
            documents=Documents(
                source=Shuffled(rows=rows, seed=seed),
                encoder=ChatEncoder(layout=layout, template=template_of(tokenizer)),
                limit=CutLong(length=length),
                num_workers=0,
                chunk=64,
            ),
            size=64,
            seed=seed,
        ),
        packing=WholeDocuments(length=length, num_open=8),
        batch_size=batch_size,
        pad_token_id=padding_token(tokenizer),
    )


def conversations_to_ask(
    rows: Any, *, layout: Layout, tokenizer: Any, length: int, batch_size: int
) -> StreamBatches:
    """Give the same conversations one to a row, to measure."""
    return StreamBatches(
        documents=Documents(
            source=Shuffled(rows=rows, seed=0),
            encoder=ChatEncoder(layout=layout, template=template_of(tokenizer)),
            limit=CutLong(length=length),
            num_workers=0,
            chunk=64,
        ),
        packing=OnePerRow(),
        batch_size=batch_size,
        pad_token_id=padding_token(tokenizer),
    )


def background(
    documents: list[str], *, tokenizer: Any, length: int, batch_size: int, seed: int
) -> Batches:
    """Give rows of the text that the memory is held to."""
    return Batches(
        rows=TextRows(documents=documents, tokenizer=tokenizer, length=length),
        batch_size=batch_size,
        seed=seed,
        pad_token_id=padding_token(tokenizer),
    )


def forgetting(adapter: MemoryAdapter, *, tokenizer: Any, course: Course) -> TextEvaluation:
    """Measure four times what the memory does to text that it was not shown."""
    return TextEvaluation(
        model=adapter,
        tokenizer=tokenizer,
        documents=course.held_out,
        max_length=course.row_length,
        batch_size=8,
        every=max(1, course.steps // 4),
    )


def instructor(
    *,
    adapter: MemoryAdapter,
    tokenizer: Any,
    course: Course,
    folder: Path,
    parallelism: SingleProcess | DataParallel | FullyShardedDataParallel,
    seed: int,
) -> Trainer:
    """Compose the training of a memory on answers, held to the base on background text.

    Started again with the same folder, it goes on where it was saved.
    """
    share = rows_per_process(course.rows_per_step, parallelism=parallelism)
    loggers: list[Logger] = [
        ProgressBar(title="instruct", total_steps=course.steps),
        JsonLines(path=folder / "metrics.jsonl"),
    ]
    return Trainer(
        objective=Objective(
            model=adapter,
            terms=[
                NextTokenLoss(name="answers", stream="conversations", weight=1.0, chunk=2048),
                LocalityLoss(name="locality", stream="background", weight=2.0, chunk=2048),
            ],
        ),
        streams={
            "conversations": conversations(
                course.rows,
                layout=course.layout,
                tokenizer=tokenizer,
                length=course.row_length,
                batch_size=share,
                seed=seed,
            ),
            "background": background(
                course.background,
                tokenizer=tokenizer,
                length=course.row_length,
                batch_size=share,
                seed=seed + 1,
            ),
        },
        groups=memory_groups(adapter, learning_rate=3e-3),
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8),
        schedule=WarmupCosine(
            warmup_steps=min(20, course.steps // 10), total_steps=course.steps, floor=0.0
        ),
        precision=BFloat16Autocast() if parallelism.device.type == "cuda" else FullPrecision(),
        parallelism=parallelism,
        start=ResumeIfAny(folder=folder / "run"),
        steps=course.steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[forgetting(adapter, tokenizer=tokenizer, course=course)],
        callbacks=[],
        checkpoints=[RunCheckpoints(folder=folder / "run", every=100, keep=2)],
        loggers=loggers if parallelism.rank == 0 else [],
    )
