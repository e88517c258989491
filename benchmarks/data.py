"""What packing is worth: useful tokens per second of real training, packed and padded.

    PYTHONPATH=src:. python3 benchmarks/data.py --data FOLDER --output benchmarks/results

A small Llama is trained whole on instruction data, some 16 conversations a step, made into tokens
ahead. A useful token is one of a conversation: padding is none. The variants take turns, round
after round, so that a busy machine is as busy for each of them; numbers are medians over rounds.

- `padded-to-context`: a conversation a row, of as many places as the model has.
- `padded-to-longest`: a conversation a row, of as many places as the longest of its batch has.
- `memtx-packed`: `WholeDocuments` in rows of as many places as the model has.

`ratio` is the time of a useful token over that of `padded-to-context`, and `ratio_longest` over
that of `padded-to-longest`. The records `loading` say how fast one process makes batches of text.
FOLDER has `models/stories260K` and `instruct/instruction-data.json`.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.records import Record, write_records
from memtx.data import (
    ChatEncoder,
    Documents,
    Instruction,
    OnePerRow,
    PlainTemplate,
    RefuseLong,
    Shuffled,
    StreamBatches,
    TokensEncoder,
    WholeDocuments,
)
from memtx.data.protocols import Batch, Document, Encoder, Packing, State
from memtx.train import (
    AdamW,
    Fresh,
    FullPrecision,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    SingleProcess,
    Trainer,
    WarmupCosine,
)

NAME = "data"
LIBRARIES = ["torch", "transformers", "tokenizers", "datasets"]
HEADINGS = {"user": "### User:\n", "assistant": "### Assistant:\n"}


@final
class PaddedToContext:
    """The rival: every conversation a row of its own, with places for the longest there may be."""

    def __init__(self, *, length: int) -> None:
        self.length = length

    def add(self, document: Document) -> list[Document]:
        return [document]

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing is open."""


@dataclass(kw_only=True)
class Counted:
    """A stream that counts the places of its batches, and those that hold a token."""

    stream: StreamBatches
    places: int
    useful: int

    def next_batch(self, *, rank: int, world_size: int) -> Batch:
        batch = self.stream.next_batch(rank=rank, world_size=world_size)
        self.places += batch["attention_mask"].numel()
        self.useful += int(batch["attention_mask"].sum())
        return batch

    def state_dict(self) -> State:
        return self.stream.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.stream.load_state_dict(state)


def stream_of(
    rows: list[Any],
    *,
    encoder: Encoder,
    packing: Packing,
    batch_size: int,
    context: int,
    num_workers: int,
) -> StreamBatches:
    """Put the pipeline of one variant together."""
    documents = Documents(
        source=Shuffled(rows=rows, seed=0),
        encoder=encoder,
        limit=RefuseLong(length=context),
        num_workers=num_workers,
        chunk=64,
    )
    return StreamBatches(
        documents=documents, packing=packing, batch_size=batch_size, pad_token_id=0
    )


def trainer_of(model: nn.Module, *, stream: Counted, steps: int) -> Trainer:
    """Put the loop of one variant together; run again, it goes on."""
    term = NextTokenLoss(name="answers", stream="chat", weight=1.0, chunk=4096)
    group = ParameterGroup(
        name="all", modules=[model], without=[], learning_rate=1e-4, weight_decay=0.0
    )
    return Trainer(
        objective=Objective(model=model, terms=[term]),
        streams={"chat": stream},
        groups=[group],
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
        schedule=WarmupCosine(warmup_steps=0, total_steps=steps, floor=1.0),
        precision=FullPrecision(),
        parallelism=SingleProcess(device=torch.device("cpu")),
        start=Fresh(),
        steps=steps,
        accumulation=1,
        clip_norm=math.inf,
        evaluations=[],
        callbacks=[],
        checkpoints=[],
        loggers=[],
    )


def training(data: Path, *, rows: list[Any], context: int, rounds: int, steps: int) -> list[Record]:
    """Train every variant for some steps, round after round."""
    rows_a_step = max(1, round(16 * statistics.mean(len(r["input_ids"]) for r in rows) / context))
    variants: dict[str, tuple[Packing, int]] = {
        "padded-to-context": (PaddedToContext(length=context), 16),
        "padded-to-longest": (OnePerRow(), 16),
        "memtx-packed": (WholeDocuments(length=context, num_open=8), rows_a_step),
    }
    loops: dict[str, tuple[Trainer, Counted]] = {}
    for name, (packing, batch_size) in variants.items():
        model = AutoModelForCausalLM.from_pretrained(data / "models" / "stories260K")
        stream = stream_of(
            rows,
            encoder=TokensEncoder(input_ids="input_ids", labels="labels"),
            packing=packing,
            batch_size=batch_size,
            context=context,
            num_workers=0,
        )
        counted = Counted(stream=stream, places=0, useful=0)
        loops[name] = trainer_of(model, stream=counted, steps=steps), counted
    # Per variant, for each round but the first, which warms up: seconds and useful tokens.
    spent: dict[str, list[tuple[float, int]]] = {name: [] for name in loops}
    for _ in range(rounds + 1):
        for name, (trainer, counted) in loops.items():
            before, start = counted.useful, time.perf_counter()
            trainer.run()
            spent[name].append((time.perf_counter() - start, counted.useful - before))
    records = []
    for name, (_, counted) in loops.items():
        each = [seconds / useful for seconds, useful in spent[name][1:]]
        records.append(
            {
                "case": f"instruct, context {context}",
                "variant": name,
                "milliseconds": 1000.0 * statistics.median(s / steps for s, _ in spent[name][1:]),
                "peak_gib": None,
                "useful_tokens_per_second": 1.0 / statistics.median(each),
                "useful_share": counted.useful / counted.places,
                "conversations": len(rows),
                "rounds": rounds,
                "steps": steps,
            }
        )
    add_ratios(records)
    return records


def add_ratios(records: list[Record]) -> None:
    """Set the time of a useful token over that of each rival."""
    speed = {record["variant"]: record["useful_tokens_per_second"] for record in records}
    for record in records:
        if record["variant"].startswith("memtx"):
            own = record["useful_tokens_per_second"]
            record["ratio"] = speed["padded-to-context"] / own
            record["ratio_longest"] = speed["padded-to-longest"] / own


def loading(
    rows: list[Any], *, encoder: Encoder, context: int, batches: int, workers: list[int]
) -> list[Record]:
    """Make batches of text, packed, by this process alone and with workers."""
    records = []
    for num_workers in workers:
        stream = stream_of(
            rows,
            encoder=encoder,
            packing=WholeDocuments(length=context, num_open=8),
            batch_size=8,
            context=context,
            num_workers=num_workers,
        )
        counted = Counted(stream=stream, places=0, useful=0)
        counted.next_batch(rank=0, world_size=1)  # workers start
        before, start = counted.useful, time.perf_counter()
        for _ in range(batches):
            counted.next_batch(rank=0, world_size=1)
        seconds = time.perf_counter() - start
        records.append(
            {
                "case": "loading",
                "variant": f"memtx-{num_workers}-workers",
                "milliseconds": 1000.0 * seconds / batches,
                "peak_gib": None,
                "useful_tokens_per_second": (counted.useful - before) / seconds,
            }
        )
    return records


def table(records: list[Record]) -> str:
    """Give the records as lines."""
    return "\n".join(
        f"{record['case']:<24}{record['variant']:<20}{record['milliseconds']:>10.1f} ms"
        f"{record['useful_tokens_per_second']:>12.0f} tokens/s"
        f"{record.get('useful_share', math.nan):>8.2f}{record.get('ratio', math.nan):>8.3f}"
        f"{record.get('ratio_longest', math.nan):>8.3f}"
        for record in records
    )


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description="Time packed and padded training.")
    parser.add_argument("--data", type=Path, required=True, help="folder of model and data")
    parser.add_argument("--tiny", action="store_true", help="a few steps; measures nothing")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = (options.data / "instruct" / "instruction-data.json").read_text(encoding="utf-8")
    rows = json.loads(text)[: 64 if options.tiny else None]
    tokenizer = AutoTokenizer.from_pretrained(options.data / "models" / "stories260K")
    encoder = ChatEncoder(
        layout=Instruction(instruction="instruction", input="input", output="output"),
        template=PlainTemplate(tokenizer=tokenizer, headings=HEADINGS, separator="\n\n"),
    )
    encoded = [encoder(row) for row in rows]
    rounds, steps = (1, 2) if options.tiny else (5, 4)
    records: list[Record] = []
    for context in [256] if options.tiny else [256, 512]:
        records += training(options.data, rows=encoded, context=context, rounds=rounds, steps=steps)
    records += loading(
        rows,
        encoder=encoder,
        context=512,
        batches=2 if options.tiny else 40,
        workers=[0] if options.tiny else [0, 1, 2],
    )
    path = write_records(
        folder=options.output,
        name=NAME,
        device=torch.device("cpu"),
        libraries=LIBRARIES,
        records=records,
    )
    print(f"{table(records)}\n{path}")


if __name__ == "__main__":
    main()
