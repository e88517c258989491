"""Training stacks from scratch on one text, to compare what they learn: every value spelled out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from factories.from_scratch import (
    dense_a_30m,
    dense_a_tiny,
    routed_a_30m,
    routed_a_tiny,
    vanilla_30m,
    vanilla_tiny,
)
from factories.tensor_memory import model_30m, softmax_30m, softmax_tiny
from factories.tensor_memory import tiny as tensor_tiny
from factories.tensor_memory import tiny_decaying as tensor_tiny_decaying
from factories.tiny_base import qwen_tokenizer
from memtx import MemoryTransformer, TensorMemoryLM
from memtx.data import Batches, TextRows, read_documents
from memtx.evaluate import TextEvaluation
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    DataParallel,
    Fresh,
    FullPrecision,
    JsonLines,
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

Stack = MemoryTransformer | TensorMemoryLM


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Stacks that are trained on the same batches; each is made, with its training, when called."""

    tokenizer: Any
    trainers: dict[str, Callable[[], Trainer]]
    rows_per_step: int
    row_length: int


def text_file(path: str | Path) -> tuple[list[str], list[str]]:
    """Read any text: the first nine tenths to train on, the last one held out.

    Paragraphs are gathered into documents of at least 2,000 characters.
    """
    documents = [""]
    for paragraph in read_documents(path, separator=r"\n\s*\n"):
        if len(documents[-1]) >= 2_000:
            documents.append("")
        documents[-1] += ("\n\n" if documents[-1] else "") + paragraph
    if len(documents) < 10:
        raise ValueError(
            f"text_file: a text must hold at least 20,000 characters in paragraphs, got "
            f"path='{path}', documents={len(documents)}; pass more text, with blank lines in it."
        )
    count = len(documents) // 10
    return documents[:-count], documents[-count:]


def groups(model: Stack, *, learning_rate: float, bank_rate: float) -> list[ParameterGroup]:
    """Give the stack, and its bank if it has one, which does not decay."""
    banks = [model.banks] if isinstance(model, MemoryTransformer) and len(model.banks) else []
    stack = ParameterGroup(
        name="stack",
        modules=[model],
        without=[*banks],
        learning_rate=learning_rate,
        weight_decay=0.1,
    )
    if not banks:
        return [stack]
    bank = ParameterGroup(
        name="bank",
        modules=[*banks],
        without=[],
        learning_rate=bank_rate,
        weight_decay=0.0,
    )
    return [stack, bank]


def pretrainer(
    *,
    name: str,
    compose: Callable[[], Stack],
    rows: TextRows,
    held_out: list[str],
    folder: Path,
    parallelism: SingleProcess | DataParallel,
    steps: int,
    rows_per_step: int,
    learning_rate: float,
    bank_rate: float,
    every: int,
    seed: int,
) -> Trainer:
    """Compose the training of a stack on rows of text, measured on documents that are not in it."""
    torch.manual_seed(seed)
    model = compose().to(parallelism.device)
    evaluation = TextEvaluation(
        model=model,
        tokenizer=rows.tokenizer,
        documents=held_out,
        max_length=rows.length,
        batch_size=8,
        every=every,
    )
    loggers: list[Logger] = [
        ProgressBar(title=name, total_steps=steps),
        JsonLines(path=folder / f"{name}.jsonl"),
    ]
    return Trainer(
        objective=Objective(
            model=model,
            terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=4096)],
        ),
        streams={
            "text": Batches(
                rows=rows,
                batch_size=rows_per_process(rows_per_step, parallelism=parallelism),
                seed=seed,
                pad_token_id=0,  # rows of text are of one length: none is padded
            )
        },
        groups=groups(model, learning_rate=learning_rate, bank_rate=bank_rate),
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=min(20, steps // 10), total_steps=steps, floor=0.0),
        precision=BFloat16Autocast() if parallelism.device.type == "cuda" else FullPrecision(),
        parallelism=parallelism,
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[evaluation],
        callbacks=[],
        checkpoints=[],
        loggers=loggers if parallelism.rank == 0 else [],
    )


def comparison(
    *,
    stacks: dict[str, Callable[[], Stack]],
    tokenizer: Any,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    parallelism: SingleProcess | DataParallel,
    steps: int,
    rows_per_step: int,
    row_length: int,
    learning_rate: float,
    bank_rate: float,
    every: int,
    seed: int,
) -> Comparison:
    """Compose the training of several stacks, all on the same batches in the same order."""
    if steps % every:
        raise ValueError(
            f"comparison: every must divide steps, so that the end is measured, got steps={steps}, "
            f"every={every}; change one."
        )
    rows = TextRows(documents=documents, tokenizer=tokenizer, length=row_length)
    trainers: dict[str, Callable[[], Trainer]] = {
        name: partial(
            pretrainer,
            name=name,
            compose=compose,
            rows=rows,
            held_out=held_out,
            folder=folder,
            parallelism=parallelism,
            steps=steps,
            rows_per_step=rows_per_step,
            learning_rate=learning_rate,
            bank_rate=bank_rate,
            every=every,
            seed=seed,
        )
        for name, compose in stacks.items()
    }
    return Comparison(
        tokenizer=tokenizer,
        trainers=trainers,
        rows_per_step=rows_per_step,
        row_length=row_length,
    )


def tiny(
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: SingleProcess | DataParallel,
) -> Comparison:
    """Compare stacks of a million parameters: a minute each on one core."""
    return comparison(
        stacks={"vanilla": vanilla_tiny, "dense": dense_a_tiny, "routed": routed_a_tiny},
        tokenizer=qwen_tokenizer(documents, vocabulary=2_048),
        documents=documents,
        held_out=held_out,
        folder=folder,
        parallelism=parallelism,
        steps=240,
        rows_per_step=8,
        row_length=128,
        learning_rate=4e-3,
        bank_rate=4e-3,
        every=40,
        seed=seed,
    )


def thirty_million(
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: SingleProcess | DataParallel,
) -> Comparison:
    """Compare stacks of thirty million parameters, on a GPU and a text of its size."""
    return comparison(
        stacks={"vanilla": vanilla_30m, "dense": dense_a_30m, "routed": routed_a_30m},
        tokenizer=qwen_tokenizer(documents, vocabulary=8_192),
        documents=documents,
        held_out=held_out,
        folder=folder,
        parallelism=parallelism,
        steps=2_000,
        rows_per_step=32,
        row_length=512,
        learning_rate=1e-3,
        bank_rate=1e-3,
        every=200,
        seed=seed,
    )


def tensor_memory(
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: SingleProcess | DataParallel,
) -> Comparison:
    """Compare tensor memory and softmax attention at a million parameters, on one core."""
    vocabulary = 2_048
    return comparison(
        stacks={
            "tensor": partial(tensor_tiny, vocab_size=vocabulary),
            "decaying": partial(tensor_tiny_decaying, vocab_size=vocabulary),
            "softmax": partial(softmax_tiny, vocab_size=vocabulary),
        },
        tokenizer=qwen_tokenizer(documents, vocabulary=vocabulary),
        documents=documents,
        held_out=held_out,
        folder=folder,
        parallelism=parallelism,
        steps=120,
        rows_per_step=8,
        row_length=128,
        learning_rate=8e-3,
        bank_rate=8e-3,
        every=24,
        seed=seed,
    )


def tensor_memory_thirty_million(
    *,
    documents: list[str],
    held_out: list[str],
    folder: Path,
    seed: int,
    parallelism: SingleProcess | DataParallel,
) -> Comparison:
    """Compare tensor memory and softmax attention at thirty million parameters, on a GPU."""
    vocabulary = 8_192
    return comparison(
        stacks={
            "tensor": partial(model_30m, vocab_size=vocabulary),
            "softmax": partial(softmax_30m, vocab_size=vocabulary),
        },
        tokenizer=qwen_tokenizer(documents, vocabulary=vocabulary),
        documents=documents,
        held_out=held_out,
        folder=folder,
        parallelism=parallelism,
        steps=2_000,
        rows_per_step=32,
        row_length=512,
        learning_rate=1e-3,
        bank_rate=1e-3,
        every=200,
        seed=seed,
    )
