"""Mixture of chapters from scratch: stacks of equal arithmetic on the same real texts.

    export PYTHONPATH=src:.
    python3 -m benchmarks.evidence.chapters --data DATA --tokenizer runs/evidence/base \\
        --work runs/evidence/chapters
    python3 -m benchmarks.evidence.chapters --data DATA --work runs/evidence/chapters \\
        --merge benchmarks/results

A stack without memory, one that reads a whole bank, and two that read as many chapters of a larger
one: all take the FLOPs per token of the first, by the width of their MLPs, and see the same batches
in the same order. Every rate is run for every stack. The tokenizer is one of 8,192 tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.clocks import forget_peak, peak_gib
from benchmarks.evidence.runs import Job, arguments, broken, merge, pace_of, work
from benchmarks.evidence.texts import domains
from benchmarks.records import Record
from factories.parts import attention, dense_read, gated_mlp, routed_read
from factories.pretraining import pretrainer
from memtx import (
    MemoryBlock,
    MemoryTransformer,
    Normal,
    RMSNorm,
    StandardMemoryBank,
    TiedHead,
    TokenEmbedding,
)
from memtx.data import TextRows
from memtx.evaluate import training_flops
from memtx.train import SingleProcess

NAME = "evidence_chapters"
MEASURED = 10
# Held-out losses of a run.
POINTS = 10


@dataclass(frozen=True, kw_only=True)
class Size:
    """What all stacks have in common, and what they are trained on."""

    vocabulary: int
    dim: int
    kv_dim: int
    num_heads: int
    num_kv_heads: int
    num_layers: int
    reading: list[int]
    # Of the MLPs of the stack without memory.
    inner: int
    dense_tokens: int
    tokens_per_chapter: int
    top_k: int
    window: int
    banks: list[int]
    rows_per_step: int
    row_length: int


# As factories.from_scratch has them at these sizes, with a second bank four times larger.
SIZES = {
    "30m": Size(
        vocabulary=8_192,
        dim=512,
        kv_dim=256,
        num_heads=8,
        num_kv_heads=4,
        num_layers=8,
        reading=[1, 4, 7],
        inner=1_664,
        dense_tokens=1_024,
        tokens_per_chapter=64,
        top_k=11,
        window=64,
        banks=[16_384, 65_536],
        rows_per_step=32,
        row_length=512,
    ),
    "tiny": Size(
        vocabulary=512,
        dim=64,
        kv_dim=32,
        num_heads=2,
        num_kv_heads=1,
        num_layers=2,
        reading=[1],
        inner=320,
        dense_tokens=64,
        tokens_per_chapter=8,
        top_k=3,
        window=8,
        banks=[128, 256],
        rows_per_step=2,
        row_length=64,
    ),
}
# Widths of MLPs that are looked through, in steps that suit a GPU.
GRAIN = 16


def stack(size: Size, *, kind: str, tokens: int, inner: int) -> MemoryTransformer:
    """Compose a stack; `tokens` is the size of its bank."""
    heads: dict[str, int] = {"num_heads": size.num_heads, "num_kv_heads": size.num_kv_heads}
    bank = (
        None
        if kind == "vanilla"
        else StandardMemoryBank(num_memory_tokens=tokens, dim=size.dim, init=Normal(std=1.0))
    )

    def layer(number: int) -> MemoryBlock:
        attend = attention(dim=size.dim, kv_dim=size.kv_dim, **heads)
        think = gated_mlp(dim=size.dim, inner=inner)
        if bank is None or number not in size.reading:
            return MemoryBlock(sublayers=[attend, think])
        if kind == "dense":
            read = dense_read(bank, dim=size.dim, kv_dim=size.kv_dim, **heads)
        else:
            read = routed_read(
                bank,
                dim=size.dim,
                kv_dim=size.kv_dim,
                num_chapters=tokens // size.tokens_per_chapter,
                top_k=size.top_k,
                window=size.window,
                **heads,
            )
        return MemoryBlock(sublayers=[attend, read, think])

    embedding = TokenEmbedding(
        vocab_size=size.vocabulary, dim=size.dim, init=Normal(std=1.1 * size.dim**-0.5)
    )
    return MemoryTransformer(
        embedding=embedding,
        banks=[] if bank is None else [bank],
        layers=[layer(number) for number in range(size.num_layers)],
        norm=RMSNorm(dim=size.dim, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


def flops_of(size: Size, compose: Callable[[], MemoryTransformer]) -> float:
    """Count what a token takes in a step, forward and backward."""
    with torch.device("meta"):
        model = compose()
    return training_flops(model=model, batch=size.rows_per_step, length=size.row_length).per_token


def stacks(size: Size) -> dict[str, tuple[int, Callable[[], MemoryTransformer]]]:
    """Give each stack with the size of its bank, all of the arithmetic of the one without."""
    plain = functools.partial(stack, size, kind="vanilla", tokens=0, inner=size.inner)
    wanted = flops_of(size, plain)
    found: dict[str, tuple[int, Callable[[], MemoryTransformer]]] = {"vanilla": (0, plain)}
    kinds = [("dense", size.dense_tokens), *(("routed", tokens) for tokens in size.banks)]
    for kind, tokens in kinds:
        # Arithmetic is linear in the width: two counts tell the slope.
        one, two = (
            flops_of(size, functools.partial(stack, size, kind=kind, tokens=tokens, inner=inner))
            for inner in (GRAIN, 2 * GRAIN)
        )
        inner = GRAIN * round((wanted - one) / (two - one) + 1)
        if inner < GRAIN:
            raise ValueError(f"stacks: a bank must leave room for MLPs, got {kind} of {tokens}.")
        compose = functools.partial(stack, size, kind=kind, tokens=tokens, inner=inner)
        found[f"{kind}-{tokens}"] = (tokens, compose)
    return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training of a stack."""

    size: str
    method: str
    rate: float
    seed: int
    steps: int

    def named(self) -> Job:
        """Give it as a job."""
        said = f"{self.size} {self.method} rate {self.rate} seed {self.seed} steps {self.steps}"
        return Job(name=said, cost=self.steps, values=self)


def do(run: Run, *, rows: TextRows, held_out: list[str], folder: Path) -> Record:
    """Train a stack, and give its curve over FLOPs."""
    size, device = SIZES[run.size], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank, compose = stacks(size)[run.method]
    each = flops_of(size, compose)
    trainer = pretrainer(
        name=f"{run.method}-{run.rate}-{run.seed}",
        compose=compose,
        rows=rows,
        held_out=held_out,
        folder=folder / "logs",
        parallelism=SingleProcess(device=device),
        steps=run.steps,
        rows_per_step=size.rows_per_step,
        learning_rate=run.rate,
        bank_rate=run.rate,
        every=max(1, run.steps // POINTS),
        seed=run.seed,
    )
    forget_peak(device)
    records = trainer.run()
    tokens = size.rows_per_step * size.row_length
    curve = [
        {
            "step": r["step"],
            "tokens": r["step"] * tokens,
            "flops": r["step"] * tokens * each,
            "held_out": r["held_out"],
        }
        for r in records
        if "held_out" in r
    ]
    said = asdict(run)
    said["learning_rate"] = said.pop("rate")
    return {
        **said,
        "bank_tokens": bank,
        "flops_per_token": each,
        "inner": compose.keywords["inner"],  # type: ignore[attr-defined]
        "parameters": sum(p.numel() for p in trainer.objective.parameters()),
        "epochs": run.steps * size.rows_per_step / len(rows),
        "held_out": curve[-1]["held_out"],
        "curve": curve,
        "peak_gib": peak_gib(device),
    }


def order(record: Record) -> Any:
    """Sort records as tables show them."""
    return (record.get("bank_tokens", 0), record["run"])


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    parser.add_argument("--size", choices=list(SIZES), default="30m")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_000, help="a multiple of ten")
    asked = parser.parse_args()
    if asked.merge is not None:
        print(merge(asked.work, name=NAME, results=asked.merge, order=order))
        return
    size = SIZES[asked.size]
    jobs = [
        Run(size=asked.size, method=method, rate=rate, seed=seed, steps=asked.steps).named()
        for rate in asked.rates
        for seed in asked.seeds
        for method in stacks(size)
    ]
    if asked.plan:
        print(f"{len(jobs)} runs, {sum(job.cost for job in jobs):.0f} steps")
        return
    pace = pace_of(asked.budget_seconds)
    if asked.tokenizer is None:
        parser.error("--tokenizer must name a folder, such as that of benchmarks.evidence.base")
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    if len(tokenizer) > size.vocabulary:
        parser.error(f"the tokenizer must have at most {size.vocabulary} tokens")
    texts = domains(asked.data)
    training = [text for each in texts for text in each.training]
    rows = TextRows(documents=training, tokenizer=tokenizer, length=size.row_length)
    held_out = [text for each in texts for text in each.held_out[:MEASURED]]
    work(
        jobs,
        do=functools.partial(do, rows=rows, held_out=held_out, folder=asked.work),
        folder=asked.work,
        name=NAME,
        part=asked.shard,
        pace=pace,
    )
    if broken(asked.work):
        raise SystemExit("runs broke:\n" + "\n".join(broken(asked.work)))


if __name__ == "__main__":
    main()
