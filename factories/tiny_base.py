"""A small Qwen2 base of one's own: trained in two minutes on the manual that ships with Python."""

import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from memtx.data import Batches, Fact, TextRows
from memtx.train import (
    AdamW,
    DataParallel,
    Fresh,
    FullPrecision,
    JsonLines,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    ProgressBar,
    SingleProcess,
    Trainer,
    WarmupCosine,
    rows_per_process,
)

VOCABULARY = 2048
ROW_LENGTH = 128
ROWS_PER_STEP = 4
STEPS = 1200


def manual(*, seed: int) -> tuple[list[str], list[str]]:
    """Give Python's reference manual, topic by topic: nine tenths to train on, one held out.

    Topics of the manual contain one another (`compound` has all of `if`), so what is held out is
    taken out of the rest paragraph by paragraph.
    """
    topics = sorted(set(pydoc_data.topics.topics.values()))
    random.Random(seed).shuffle(topics)
    held_out = topics[: len(topics) // 10]
    hidden = {" ".join(part.split()) for text in held_out for part in text.split("\n\n")}
    kept = [
        [part for part in text.split("\n\n") if " ".join(part.split()) not in hidden]
        for text in topics[len(held_out) :]
    ]
    return ["\n\n".join(parts) for parts in kept if parts], held_out


def stories(*, facts: list[Fact], seed: int) -> list[str]:
    """Tell facts in documents of ten, each fact in twenty of them."""
    told = facts * 20
    random.Random(seed).shuffle(told)
    lines = [f"{fact.prompt} {fact.answer}" for fact in told]
    return [" ".join(lines[start : start + 10]) for start in range(0, len(lines), 10)]


def qwen_tokenizer(documents: list[str], *, vocabulary: int) -> Any:
    """Train a tokenizer of Qwen2's own kind on the documents.

    Any other kind would come back as Qwen2's when the saved folder is loaded, and cut words
    differently.
    """
    empty = Qwen2Tokenizer()
    return empty.train_new_from_iterator(documents, vocabulary, show_progress=False)


def tiny_qwen(*, end_token: int) -> Qwen2ForCausalLM:
    """Make a Qwen2 of 1.1 million parameters with random weights."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            # Qwen2's own 0.02 suits its width: at width 128 a start that small learns half as fast.
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=end_token,
            # A padding token would start as a zero vector, and be the end token at that: the
            # norm of a zero stream multiplies its gradient by a thousand.
            pad_token_id=None,
        )
    )


def pretrain(
    *,
    documents: list[str],
    folder: Path,
    seed: int,
    parallelism: SingleProcess | DataParallel,
) -> tuple[Qwen2ForCausalLM, Any]:
    """Train a tokenizer and a tiny Qwen on documents; the first process saves both in `folder`."""
    tokenizer = qwen_tokenizer(documents, vocabulary=VOCABULARY)
    model = tiny_qwen(end_token=tokenizer.eos_token_id)
    rows = TextRows(documents=documents, tokenizer=tokenizer, length=ROW_LENGTH)
    first = parallelism.rank == 0
    Trainer(
        objective=Objective(
            model=model,
            terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=4096)],
        ),
        streams={
            "text": Batches(
                rows=rows,
                batch_size=rows_per_process(ROWS_PER_STEP, parallelism=parallelism),
                seed=seed,
                pad_token_id=tokenizer.pad_token_id,
            )
        },
        groups=[
            ParameterGroup(
                name="base", modules=[model], without=[], learning_rate=4e-3, weight_decay=0.1
            )
        ],
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=20, total_steps=STEPS, floor=0.0),
        precision=FullPrecision(),
        parallelism=parallelism,
        start=Fresh(),
        steps=STEPS,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=[],
        checkpoints=[],
        loggers=[
            ProgressBar(title="pretrain", total_steps=STEPS),
            JsonLines(path=folder.parent / "pretrain.jsonl"),
        ]
        if first
        else [],
    ).run()
    if first:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer
