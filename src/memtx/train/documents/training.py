"""How a memory learns a text: three terms and what they read, every value handed in."""

from dataclasses import dataclass
from typing import Any, final

import torch

from memtx.adapters import MemoryAdapter
from memtx.checks import require, require_positive
from memtx.data import Batches, ContextRows, begin_tokens, pieces_of, read_again, read_on
from memtx.data.contexts import Reading
from memtx.data.protocols import Stream
from memtx.generate import padding_token, samples
from memtx.train.distillation import DistillationLoss
from memtx.train.documents.background import Background
from memtx.train.groups import ParameterGroup
from memtx.train.loggers import Logger
from memtx.train.optimizer import AdamW
from memtx.train.parallel import SingleProcess
from memtx.train.precision import BFloat16Autocast, FullPrecision
from memtx.train.schedules import WarmupCosine
from memtx.train.start import Fresh
from memtx.train.terms import LocalityLoss, NextTokenLoss, Objective, Term
from memtx.train.trainer import Trainer

CHUNK = 2048


@final
@dataclass(frozen=True, kw_only=True)
class TextLesson:
    """How a text is learned.

    Args:
        steps: optimizer steps.
        learning_rate: at its largest.
        length: tokens of a row of text and of background.
        text_rows: rows of the text in a step.
        readings: rows in a step that the base reads with the text before them, and the model
            without.
        background_rows: rows of background in a step.
        text_weight: of the loss on the text.
        distillation_weight: of KL from the base that has read the text.
        locality_weight: of KL from the base on background.
        samples: continuations that the base makes up after each piece of the text, beside the
            piece itself and the one that follows it.
        seed: decides every order and all that is made up.

    Raises:
        ValueError: if a size is out of range.

    Source: memtx's own; docs/learning.md tells how the values were chosen.

    Example:
        >>> lesson = TextLesson(
        ...     steps=400, learning_rate=3e-3, length=128, text_rows=8, readings=4,
        ...     background_rows=8, text_weight=1.0, distillation_weight=0.5, locality_weight=4.0,
        ...     samples=0, seed=0)
        >>> lesson.steps
        400
    """

    steps: int
    learning_rate: float
    length: int
    text_rows: int
    readings: int
    background_rows: int
    text_weight: float
    distillation_weight: float
    locality_weight: float
    samples: int
    seed: int

    def __post_init__(self) -> None:
        require_positive(
            owner=self,
            sizes={
                "steps": self.steps,
                "length // 16": self.length // 16,
                "text_rows": self.text_rows,
                "readings": self.readings,
                "background_rows": self.background_rows,
            },
        )
        require(
            ok=self.samples >= 0 and self.learning_rate > 0.0,
            owner=self,
            rule="samples must not be negative, and learning_rate be positive",
            got={"samples": self.samples, "learning_rate": self.learning_rate},
            remedy="pass 0 to have none made up; 3e-3 is usual for a small base",
        )


def text_windows(tokenizer: Any, documents: list[str], *, length: int) -> list[list[int]]:
    """Give rows of a text that overlap by half, so that each token is learned behind others.

    Args:
        tokenizer: of the base.
        documents: the texts.
        length: tokens of a row, a begin token before each where the tokenizer has one.
    """
    prefix = begin_tokens(tokenizer)
    halves = pieces_of(tokenizer, documents, length=(length - len(prefix)) // 2)
    pairs = [first + second for first, second in read_on(halves)] or halves
    return [[*prefix, *pair] for pair in pairs]


def readings_of(
    base: Any, *, tokenizer: Any, documents: list[str], lesson: TextLesson
) -> list[Reading]:
    """Give what the teacher reads and what follows: the piece again, the next, and what it says.

    Args:
        base: the teacher.
        tokenizer: its tokenizer.
        documents: the texts.
        lesson: how they are learned.
    """
    pieces = pieces_of(tokenizer, documents, length=lesson.length // 2)
    readings = read_again(pieces) + read_on(pieces)
    whole = [piece for piece in pieces if len(piece) == lesson.length // 2]
    if lesson.samples and whole:
        asked = [piece for piece in whole for _ in range(lesson.samples)]
        prefix = begin_tokens(tokenizer)
        said = samples(
            model=base,
            prompts=[[*prefix, *piece] for piece in asked],
            max_new_tokens=lesson.length // 2,
            batch_size=lesson.background_rows,
            temperature=1.0,
            seed=lesson.seed,
            pad_token_id=padding_token(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
        readings += [(piece, text) for piece, text in zip(asked, said, strict=True) if text]
    return readings


def text_trainer(
    adapter: MemoryAdapter,
    *,
    tokenizer: Any,
    documents: list[str],
    background: Background,
    lesson: TextLesson,
    loggers: list[Logger],
) -> Trainer:
    """Compose the training of a memory on a text, held to the base on background.

    Args:
        adapter: the base with its memory, on the device that trains.
        tokenizer: of the base.
        documents: the texts.
        background: what the model is held to.
        lesson: the values.
        loggers: receive the records.

    Raises:
        ValueError: if the documents have no token.
    """
    device = torch.device(adapter.device)
    return Trainer(
        objective=Objective(
            model=adapter, terms=_terms(lesson, num_prefix=len(begin_tokens(tokenizer)))
        ),
        streams=_streams(
            adapter,
            tokenizer=tokenizer,
            documents=documents,
            background=background,
            lesson=lesson,
        ),
        groups=[
            ParameterGroup(
                name="memory",
                modules=[adapter.banks, adapter.insertions],
                without=[],
                learning_rate=lesson.learning_rate,
                weight_decay=0.0,
            )
        ],
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8),
        schedule=WarmupCosine(
            warmup_steps=min(20, lesson.steps // 10), total_steps=lesson.steps, floor=0.0
        ),
        precision=BFloat16Autocast() if device.type == "cuda" else FullPrecision(),
        parallelism=SingleProcess(device=device),
        start=Fresh(),
        steps=lesson.steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=[],
        checkpoints=[],
        loggers=loggers,
    )


def _terms(lesson: TextLesson, *, num_prefix: int) -> list[Term]:
    return [
        NextTokenLoss(name="text", stream="text", weight=lesson.text_weight, chunk=CHUNK),
        DistillationLoss(
            name="distillation",
            stream="readings",
            weight=lesson.distillation_weight,
            chunk=CHUNK,
            num_prefix=num_prefix,
        ),
        LocalityLoss(
            name="locality", stream="background", weight=lesson.locality_weight, chunk=CHUNK
        ),
    ]


def _streams(
    adapter: MemoryAdapter,
    *,
    tokenizer: Any,
    documents: list[str],
    background: Background,
    lesson: TextLesson,
) -> dict[str, Stream]:
    with adapter.disabled():
        readings = readings_of(adapter, tokenizer=tokenizer, documents=documents, lesson=lesson)
    rows: dict[str, tuple[Any, int]] = {
        "text": (_all(text_windows(tokenizer, documents, length=lesson.length)), lesson.text_rows),
        "readings": (
            ContextRows(readings=readings, prefix=begin_tokens(tokenizer)),
            lesson.readings,
        ),
        "background": (_all(background.training), lesson.background_rows),
    }
    return {
        name: Batches(
            rows=held,
            batch_size=batch_size,
            seed=lesson.seed + number,
            pad_token_id=padding_token(tokenizer),
        )
        for number, (name, (held, batch_size)) in enumerate(rows.items())
    }


def _all(rows: list[list[int]]) -> list[dict[str, list[int]]]:
    """Give rows of which every token counts."""
    return [{"input_ids": row, "labels": row} for row in rows]
