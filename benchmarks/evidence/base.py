"""A Qwen2 base of 33 million parameters, trained by memtx itself on real texts.

    PYTHONPATH=src:. python3 -m benchmarks.evidence.base DATA --output runs/evidence/base \\
        --results benchmarks/results

DATA is a folder with text/ (benchmarks.evidence.texts says which files; those that are missing are
left out, and the report names the domains). The folder of output gets the model, its tokenizer and
report.json: losses on held-out text by domain, and the curve. A thousand steps on a GPU take about
as long as compiling the parts, so nothing is compiled unless asked for.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks.evidence.texts import Domain, domains
from benchmarks.records import machine, versions, write_records
from factories.tiny_base import qwen_tokenizer
from memtx.adapters.compilation import compile_parts, uncompile_parts
from memtx.data import Batches, TextRows
from memtx.evaluate import StridedWindows, TextEvaluation, perplexity
from memtx.train import (
    AdamW,
    BFloat16Autocast,
    Fresh,
    FullPrecision,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    ProgressBar,
    SingleProcess,
    Trainer,
    WarmupCosine,
)

# Of the report, what becomes a record.
KEPT = ("parameters", "training_tokens", "epochs", "steps", "seconds", "compiled", "curve")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A base, and how it is trained."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    row_length: int
    rows_per_step: int
    epochs: float
    most_steps: int
    learning_rate: float
    # Documents of each domain that are measured.
    measured: int


SIZES = {
    "full": Size(
        vocabulary=8_192,
        hidden=576,
        inner=1_536,
        layers=8,
        heads=9,
        kv_heads=3,
        row_length=1_024,
        rows_per_step=32,
        epochs=6.0,
        most_steps=4_000,
        learning_rate=1.5e-3,
        measured=40,
    ),
    "tiny": Size(
        vocabulary=400,
        hidden=64,
        inner=128,
        layers=2,
        heads=4,
        kv_heads=2,
        row_length=384,
        rows_per_step=2,
        epochs=1.0,
        most_steps=6,
        learning_rate=4e-3,
        measured=2,
    ),
}


def qwen(size: Size, *, end_token: int) -> Qwen2ForCausalLM:
    """Make a Qwen2 with random weights."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=size.row_length,
            tie_word_embeddings=True,
            # Narrower than what Qwen2's own 0.02 is for.
            initializer_range=size.hidden**-0.5,
            bos_token_id=None,
            eos_token_id=end_token,
            # As in factories.tiny_base: a padding row of zeros has a norm that blows up.
            pad_token_id=None,
        )
    )


def trainer_of(
    model: Qwen2ForCausalLM,
    *,
    size: Size,
    rows: TextRows,
    held_out: list[str],
    steps: int,
    seed: int,
    device: torch.device,
) -> Trainer:
    """Compose the training."""
    evaluation = TextEvaluation(
        model=model,
        tokenizer=rows.tokenizer,
        documents=held_out,
        max_length=size.row_length,
        batch_size=16,
        every=max(1, steps // 10),
    )
    return Trainer(
        objective=Objective(
            model=model,
            terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=8_192)],
        ),
        streams={
            "text": Batches(rows=rows, batch_size=size.rows_per_step, seed=seed, pad_token_id=0)
        },
        groups=[
            ParameterGroup(
                name="base",
                modules=[model],
                without=[],
                learning_rate=size.learning_rate,
                weight_decay=0.1,
            )
        ],
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=min(100, steps // 10), total_steps=steps, floor=0.0),
        precision=BFloat16Autocast() if device.type == "cuda" else FullPrecision(),
        parallelism=SingleProcess(device=device),
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=1.0,
        evaluations=[evaluation],
        callbacks=[],
        checkpoints=[],
        loggers=[ProgressBar(title="base", total_steps=steps)],
    )


def losses(model: Any, tokenizer: Any, *, texts: list[Domain], size: Size) -> dict[str, Any]:
    """Measure held-out text by domain."""
    windows = StridedWindows(max_length=size.row_length, stride=size.row_length)
    found = {}
    for each in texts:
        measured = perplexity(
            model=model,
            tokenizer=tokenizer,
            documents=each.held_out[: size.measured],
            windows=windows,
            batch_size=8,
        )
        found[each.name] = {
            "loss": measured.mean,
            "perplexity": measured.perplexity,
            "bits_per_byte": measured.bits_per_byte,
            "tokens": sum(measured.tokens),
        }
    return found


def train(
    data: Path,
    *,
    size: Size,
    epochs: float,
    compiled: bool,
    seed: int,
    tokenizer: Any | None,
    output: Path,
) -> dict[str, Any]:
    """Train base, and tokenizer if none is given, measure, and save both with a report."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts = domains(data)
    training = [text for each in texts for text in each.training]
    held_out = [text for each in texts for text in each.held_out[: size.measured // 2]]
    if tokenizer is None:
        tokenizer = qwen_tokenizer(training, vocabulary=size.vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    # First of all: other scripts may begin with it.
    tokenizer.save_pretrained(output)
    model = qwen(size, end_token=tokenizer.eos_token_id).to(device)
    rows = TextRows(documents=training, tokenizer=tokenizer, length=size.row_length)
    steps = min(size.most_steps, math.ceil(epochs * len(rows) / size.rows_per_step))
    prepared = time.perf_counter()
    if compiled:
        compile_parts(model)
    trainer = trainer_of(
        model, size=size, rows=rows, held_out=held_out, steps=steps, seed=seed, device=device
    )
    records = trainer.run()
    if compiled:
        uncompile_parts(model)
    trained = time.perf_counter()
    report = {
        "machine": machine(device),
        "versions": versions(["torch", "transformers", "memtx"]),
        "size": asdict(size),
        "compiled": compiled,
        "epochs": steps * size.rows_per_step / len(rows),
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": len(rows) * size.row_length,
        "seconds": {"preparing": prepared - started, "training": trained - prepared},
        "curve": [[r["step"], r["held_out"]] for r in records if "held_out" in r],
        "held_out": losses(model, tokenizer, texts=texts, size=size),
    }
    model.save_pretrained(output)
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument(
        "--epochs", type=float, help="times through the texts; the size's if absent"
    )
    parser.add_argument("--tokenizer", help="folder of one that is ready; trained if absent")
    parser.add_argument("--tokenizer-only", action="store_true", help="train that, and end")
    parser.add_argument("--compile", action="store_true", help="compile the layers' parts first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="write evidence_base.json there as well")
    asked = parser.parse_args()
    size = SIZES[asked.size]
    epochs = size.epochs if asked.epochs is None else asked.epochs
    if asked.tokenizer_only:
        training = [text for each in domains(asked.data) for text in each.training]
        qwen_tokenizer(training, vocabulary=size.vocabulary).save_pretrained(asked.output)
        return
    ready = AutoTokenizer.from_pretrained(asked.tokenizer) if asked.tokenizer else None
    report = train(
        asked.data,
        size=size,
        epochs=epochs,
        compiled=asked.compile,
        seed=asked.seed,
        tokenizer=ready,
        output=asked.output,
    )
    print(json.dumps(report, indent=2))
    if asked.results is not None:
        domains_of = [{"case": name, **found} for name, found in report["held_out"].items()]
        kept = {key: report[key] for key in KEPT}
        write_records(
            folder=asked.results,
            name="evidence_base",
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            libraries=["torch", "transformers", "memtx"],
            records=[{"case": "training", **kept}, *domains_of],
        )


if __name__ == "__main__":
    main()
