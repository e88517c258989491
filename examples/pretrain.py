"""Train a routed stack from scratch on a stream of text; started again, it goes on.

    python examples/pretrain.py
    python examples/pretrain.py factories.streaming:thirty_million --data corpus.jsonl --field text
    torchrun --nproc_per_node=2 examples/pretrain.py --data corpus.jsonl --output runs/corpus
    torchrun --nproc_per_node=2 examples/pretrain.py --sharded --output runs/sharded

DATA is a file (text, JSON, JSON lines, Parquet, CSV) or the name of a dataset on the hub, read as a
stream: it may be larger than the memory. Its first documents are held out. With no data it is the
manual that ships with Python. Documents are packed into full rows and do not see each other. The
run is saved every few steps; killed and started again with the same folder, it takes the very steps
that it would have taken. The one argument is the factory to run.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset, load_dataset
from transformers import AutoTokenizer

from factories.streaming import Parallelism, Plan, streamer
from factories.tiny_base import manual, qwen_tokenizer
from memtx import save
from memtx.data import Shuffled, Streamed
from memtx.data.protocols import Source
from memtx.train import LayersAsUnits, group_table, launched, launched_sharded

FACTORY = "factories.streaming:tiny"
SEED = int(os.environ.get("MEMTX_SEED", "0"))
HELD_OUT = 32
TOKENIZER_DOCUMENTS = 2_000
OUTPUT = "runs/pretrain"
KINDS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a stack with a routed memory on a stream of text.",
        epilog="example: pretrain.py --data corpus.jsonl --field text --output runs/corpus",
    )
    parser.add_argument(
        "factory",
        metavar="FACTORY",
        nargs="?",
        default=FACTORY,
        help=f"what to train, as module:function ({FACTORY} if absent)",
    )
    parser.add_argument("--data", help="file or dataset of text (the manual of Python if absent)")
    parser.add_argument("--subset", help="subset of a dataset on the hub")
    parser.add_argument("--split", default="train", help="split of the data (train if absent)")
    parser.add_argument("--field", default="text", help="field of the text (text if absent)")
    parser.add_argument("--tokenizer", help="folder or hub id (one is trained if absent)")
    parser.add_argument("--sharded", action="store_true", help="shard the model over processes")
    parser.add_argument(
        "--output", default=OUTPUT, metavar="FOLDER", help=f"where to save ({OUTPUT} if absent)"
    )
    return parser.parse_args()


def plan_of(name: str) -> Plan:
    """Find a factory by `module:function`, and call it."""
    module, _, function = name.partition(":")
    try:
        found: Callable[[], Plan] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"pretrain: FACTORY must be module:function of a factory, got {name!r} ({error}); "
            f"try {FACTORY}."
        ) from error
    return found()


def stream_of(options: argparse.Namespace) -> IterableDataset:
    """Open the data without reading it."""
    kind = KINDS.get(Path(options.data).suffix)
    try:
        if kind is not None:
            return load_dataset(kind, data_files=options.data, split=options.split, streaming=True)
        return load_dataset(options.data, options.subset, split=options.split, streaming=True)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        reason = " ".join(str(error).split()) or "it is empty"
        raise ValueError(
            f"pretrain: --data must be a file of text or a dataset, got data={options.data!r}, "
            f"split={options.split!r} ({reason}); check it."
        ) from error


def first_texts(dataset: Any, *, count: int, field: str) -> list[str]:
    """Read the texts of the first rows."""
    try:
        rows = list(islice(iter(dataset), count))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"pretrain: --data must be readable to its end, got an error: {reason}; mend the file."
        ) from error
    if rows and field not in rows[0]:
        raise ValueError(
            f"pretrain: --field must be a field of the rows, got field={field!r}, "
            f"fields={sorted(rows[0])}; name one of these."
        )
    strange = [row[field] for row in rows if not isinstance(row[field], str | None)]
    if strange:
        raise ValueError(
            f"pretrain: --field must be a field of text, got field={field!r}, "
            f"value={strange[0]!r}; name another."
        )
    return [row[field] for row in rows if row[field] and row[field].strip()]


def has_text(row: dict[str, Any], *, field: str) -> bool:
    """Tell a row from an empty one; what is neither text nor nothing is refused as it is read."""
    text = row[field]
    return bool(text.strip()) if isinstance(text, str) else text is not None


def texts_of(options: argparse.Namespace) -> tuple[Source, list[str], list[str]]:
    """Give the source of rows, texts that are held out of it, and texts for a tokenizer."""
    if options.data is None:
        documents, held_out = manual(seed=SEED)
        rows = Dataset.from_list([{options.field: text} for text in documents])
        return Shuffled(rows=rows, seed=SEED), held_out, documents
    dataset = stream_of(options)
    held_out = first_texts(dataset, count=HELD_OUT, field=options.field)
    rest = dataset.skip(HELD_OUT).filter(partial(has_text, field=options.field))
    sample = first_texts(rest, count=TOKENIZER_DOCUMENTS, field=options.field)
    if not (held_out and sample):
        raise ValueError(
            f"pretrain: --data must hold more than {HELD_OUT} documents, got "
            f"data={options.data!r}; pass more text."
        )
    return Streamed(dataset=rest), held_out, sample


def tokenizer_of(options: argparse.Namespace, *, sample: list[str], vocabulary: int) -> Any:
    """Load the tokenizer that was named, or train one; the same texts give the same one."""
    if options.tokenizer is None:
        return qwen_tokenizer(sample, vocabulary=vocabulary)
    try:
        return AutoTokenizer.from_pretrained(options.tokenizer)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"pretrain: --tokenizer must be a folder or hub id, got "
            f"tokenizer={options.tokenizer!r} ({reason}); check it."
        ) from error


def keep(tokenizer: Any, folder: Path) -> None:
    """Save the tokenizer of the run; one that goes on must have the same."""
    if folder.is_dir():
        kept = AutoTokenizer.from_pretrained(folder)
        if kept.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"pretrain: a run must go on with the tokenizer it was begun with, got "
                f"folder={str(folder)!r}, which holds another; pass the same --data and "
                "--tokenizer as then, or another --output."
            )
    tokenizer.save_pretrained(folder)


def train(options: argparse.Namespace, parallelism: Parallelism) -> None:
    """Compose, train, save and report."""
    plan = plan_of(options.factory)
    source, held_out, sample = texts_of(options)
    tokenizer = tokenizer_of(options, sample=sample, vocabulary=plan.vocabulary)
    if len(tokenizer) > plan.vocabulary:
        raise ValueError(
            f"pretrain: the tokenizer must fit the stack of {options.factory}, got "
            f"tokens={len(tokenizer)}, vocabulary={plan.vocabulary}; take another of the two."
        )
    torch.manual_seed(SEED)
    folder, first = Path(options.output), parallelism.rank == 0
    model = plan.compose()
    trainer = streamer(
        model=model,
        plan=plan,
        source=source,
        field=options.field,
        held_out=held_out,
        tokenizer=tokenizer,
        folder=folder,
        parallelism=parallelism,
        seed=SEED,
    )
    if first:
        keep(tokenizer, folder / "tokenizer")
        print(group_table(trainer.groups), flush=True)
    records = trainer.run()
    save(model, folder / "model")
    measured = [record["held_out"] for record in records if "held_out" in record]
    if first and measured:
        print(f"held-out loss {measured[0]:.4f} -> {measured[-1]:.4f} nats per token")
    if first:
        print(f"{len(records)} steps taken now; saved {folder / 'model'}")


def processes(options: argparse.Namespace) -> AbstractContextManager[Parallelism]:
    """Give the processes: the model whole in each, or sharded over them."""
    if not options.sharded:
        return launched()
    return launched_sharded(
        units=LayersAsUnits(), param_dtype=None, reduce_dtype=None, reshard_after_forward=True
    )


def main() -> None:
    """Run from the command line; mistakes end in one line."""
    options = parse()
    with processes(options) as parallelism:
        try:
            train(options, parallelism)
        except (OSError, ValueError, FloatingPointError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
