"""The small Llama, facts to teach it, stories to keep, and memories that are read differently."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.records import Record, machine, versions
from memtx import (
    Insertion,
    Linear,
    MemoryAdapter,
    MemoryCrossAttention,
    Normal,
    Residual,
    RMSNorm,
    ScaledHeads,
    SinkMemoryBank,
    Site,
    StandardMemoryBank,
    UnitHeads,
    Zeros,
)
from memtx.data import Batches, Fact, FactRows, TextRows, read_documents
from memtx.evaluate import text_loss
from memtx.generate import padding_token
from memtx.train import (
    AdamW,
    Callback,
    Fresh,
    FullPrecision,
    LocalityLoss,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    SingleProcess,
    Trainer,
    WarmupCosine,
)
from memtx.train.terms import Term

DIM, NUM_HEADS = 64, 2
ALL_LAYERS, UPPER_LAYERS = [0, 1, 2, 3, 4], [2, 3, 4]
HEAD_DIM = DIM // NUM_HEADS
HELD_OUT = 100
LENGTH = 96
FACTS_PER_STEP, BACKGROUND_PER_STEP = 24, 8
LEARNING_RATE = 3e-3
# One break between lines parts stories; blank lines part paragraphs of one.
SEPARATOR = r"(?<!\n)\n(?!\n)"

Projections = tuple[nn.Module, nn.Module]


def load(folder: Path) -> tuple[Any, Any]:
    """Load base and tokenizer."""
    path = folder / "models" / "stories260K"
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def stories(folder: Path) -> tuple[list[str], list[str]]:
    """Give the stories to stay true to, and those kept aside."""
    documents = read_documents(folder / "text" / "tinystories.txt", separator=SEPARATOR)
    return documents[:-HELD_OUT], documents[-HELD_OUT:]


def linear() -> Linear:
    return Linear(in_features=DIM, out_features=DIM, bias=False, init=Normal(std=DIM**-0.5))


def unit() -> UnitHeads:
    return UnitHeads(projection=linear(), num_heads=NUM_HEADS, eps=1e-6)


def plain_reading() -> Projections:
    """Give query and key projections as they usually are."""
    return linear(), linear()


def sharp_reading() -> Projections:
    """The same with scores four times larger, by a learned scale."""
    return ScaledHeads(projection=linear(), num_heads=NUM_HEADS, scale=4.0), linear()


def unit_reading() -> Projections:
    """Scores are cosines times a learned scale that starts at 25."""
    scale = 25.0 * HEAD_DIM**0.5
    return ScaledHeads(projection=unit(), num_heads=NUM_HEADS, scale=scale), unit()


def plain_bank() -> StandardMemoryBank:
    return StandardMemoryBank(num_memory_tokens=512, dim=DIM, init=Normal(std=1.0))


def bank_with_sinks(num_sinks: int) -> SinkMemoryBank:
    return SinkMemoryBank(num_sinks=num_sinks, stored=plain_bank())


def memory(
    base: nn.Module,
    *,
    bank: nn.Module,
    reading: Callable[[], Projections],
    layers: Sequence[int],
) -> MemoryAdapter:
    """Read a bank after the attention of some layers."""

    def recall() -> Residual:
        q_proj, k_proj = reading()
        return Residual(
            norm=RMSNorm(dim=DIM, eps=1e-5),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=q_proj,
                k_proj=k_proj,
                v_proj=linear(),
                o_proj=Linear(in_features=DIM, out_features=DIM, bias=False, init=Zeros()),
                num_heads=NUM_HEADS,
                num_kv_heads=NUM_HEADS,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=Site.AFTER_ATTENTION, sublayers=[recall()])
            for layer in layers
        ],
    )


def groups(adapter: MemoryAdapter, *, rates: tuple[float, float]) -> list[ParameterGroup]:
    """Give the bank and what reads it; a rate of 0.0 freezes one."""
    modules = (("bank", adapter.banks, []), ("reading", adapter.insertions, [adapter.banks]))
    return [
        ParameterGroup(
            name=name,
            modules=[held],
            without=[*without],
            learning_rate=rate,
            weight_decay=0.0,
        )
        for (name, held, without), rate in zip(modules, rates, strict=True)
    ]


def facts_term(name: str) -> NextTokenLoss:
    """Learn the facts of a stream."""
    return NextTokenLoss(name=name, stream=name, weight=1.0, chunk=4096)


def teach(
    adapter: MemoryAdapter,
    *,
    tokenizer: Any,
    facts: Mapping[str, list[Fact]],
    terms: Sequence[Term],
    documents: list[str],
    steps: int,
    locality_weight: float,
    rates: tuple[float, float],
    callbacks: Sequence[Callback],
    seed: int,
) -> None:
    """Teach facts by terms over streams of them, held to the base on stories.

    The rates are those of the bank and of what reads it.
    """
    fill = padding_token(tokenizer)
    locality = LocalityLoss(
        name="locality", stream="background", weight=locality_weight, chunk=4096
    )
    background = Batches(
        rows=TextRows(documents=documents, tokenizer=tokenizer, length=LENGTH),
        batch_size=BACKGROUND_PER_STEP,
        seed=seed + 1,
        pad_token_id=fill,
    )
    taught = {
        name: Batches(
            rows=FactRows(facts=some, tokenizer=tokenizer),
            batch_size=FACTS_PER_STEP,
            seed=seed,
            pad_token_id=fill,
        )
        for name, some in facts.items()
    }
    Trainer(
        objective=Objective(model=adapter, terms=[*terms, locality]),
        streams={**taught, "background": background},
        groups=groups(adapter, rates=rates),
        optimizer=AdamW(betas=(0.9, 0.99), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=min(20, steps // 10), total_steps=steps, floor=0.0),
        precision=FullPrecision(),
        parallelism=SingleProcess(device=torch.device("cpu")),
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[],
        callbacks=callbacks,
        checkpoints=[],
        loggers=[],
    ).run()


def story_loss(model: Any, tokenizer: Any, documents: list[str]) -> float:
    """Give the loss on stories, in nats per token."""
    found = text_loss(
        model=model, tokenizer=tokenizer, documents=documents, max_length=512, batch_size=16
    )
    return found.mean


def add_record(path: Path, record: Record, *, key: str) -> None:
    """Put a record into a file of records, in place of one of the same `key`."""
    kept: list[Record] = []
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))["records"]
    content = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(["torch", "transformers", "memtx"]),
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "records": [each for each in kept if each[key] != record[key]] + [record],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
