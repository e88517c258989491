"""Teach a JSON file of facts to any supported model, holding it to itself on a background text.

    python examples/teach_facts.py BASE FACTS BACKGROUND --facts 100 --output runs/facts
    torchrun --nproc_per_node=2 examples/teach_facts.py BASE FACTS BACKGROUND

BASE is a model folder or hub id, FACTS a JSON file of records (prompt and target_new, answer or
completion; src and answers; question and answer), BACKGROUND a UTF-8 text file whose last hundred
documents are kept aside to measure what teaching did to the rest. Documents are what stands
between single line breaks; paragraphs of one document are set apart by blank lines.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from factories.llama_adapter import memory_sized_by
from factories.teaching import background_rows, teacher
from memtx import MemoryAdapter, save
from memtx.data import Fact, read_documents, read_facts
from memtx.evaluate import Recall, TextLoss, recall, text_loss
from memtx.train import DataParallel, SingleProcess, launched
from memtx.train.groups import group_table

SEED = 0
STEPS = 600
LEARNING_RATE = 3e-3
FACTS_PER_STEP = 24
BACKGROUND_PER_STEP = 8
BACKGROUND_LENGTH = 96
LOCALITY_WEIGHT = 2.0
HELD_OUT_DOCUMENTS = 100
MAX_LENGTH = 512
BATCH_SIZE = 16
SEPARATOR = r"(?<!\n)\n(?!\n)"
OUTPUT = "runs/facts"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Teach facts to a memory in a frozen model.",
        epilog="example: teach_facts.py my-llama facts.json stories.txt --facts 100",
    )
    parser.add_argument("base", metavar="BASE", help="model folder or hub id")
    parser.add_argument("facts", metavar="FACTS", help="JSON or JSON-lines file of facts")
    parser.add_argument("background", metavar="BACKGROUND", help="text file to stay true to")
    parser.add_argument(
        "--facts", dest="num_facts", type=int, metavar="N", help="teach the first N (all if absent)"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N", help=f"optimizer steps ({STEPS} if absent)"
    )
    parser.add_argument(
        "--output", default=OUTPUT, metavar="FOLDER", help=f"where to save ({OUTPUT} if absent)"
    )
    parser.add_argument(
        "--separator",
        default=SEPARATOR,
        metavar="REGEX",
        help="what stands between documents of BACKGROUND (a single line break if absent)",
    )
    return parser.parse_args()


def load_base(name: str) -> tuple[nn.Module, Any]:
    """Load model and tokenizer; transformers tells in several lines, without the name, why not."""
    try:
        base: nn.Module = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        return base, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"teach_facts: BASE must be a model folder or hub id, got base={name!r} ({reason}); "
            f"check it."
        ) from error


def measure(
    model: Any, tokenizer: Any, *, facts: list[Fact], held_out: list[str]
) -> tuple[Recall, TextLoss]:
    """Measure recall and held-out loss of a model as it is now."""
    known = recall(model=model, tokenizer=tokenizer, facts=facts, batch_size=50)
    loss = text_loss(
        model=model,
        tokenizer=tokenizer,
        documents=held_out,
        max_length=MAX_LENGTH,
        batch_size=BATCH_SIZE,
    )
    return known, loss


def report(
    *,
    before: tuple[Recall, TextLoss],
    off: tuple[Recall, TextLoss],
    on: tuple[Recall, TextLoss],
    held_out: int,
) -> None:
    """Print what teaching changed."""
    columns = (("before", before), ("memory off", off), ("memory on", on))
    print(f"\n{'':<34}" + "".join(f"{name:>14}" for name, _ in columns))
    counts = "".join(f"{f'{r.num_recalled} of {r.num_facts}':>14}" for _, (r, _) in columns)
    print(f"{'facts recalled exactly (greedy)':<34}{counts}")
    values = "".join(f"{loss.perplexity:>14.6f}" for _, (_, loss) in columns)
    print(f"{f'perplexity, {held_out} held-out texts':<34}{values}")
    rise = 100 * (on[1].perplexity / off[1].perplexity - 1)
    same = "yes" if off[1].total == before[1].total else "NO"
    print(f"{'  change with the memory on':<34}{'':>28}{rise:>+13.2f}%")
    print(f"{'  off equals before, to the last bit':<38}{same:>24}")


def teach(options: argparse.Namespace, parallelism: SingleProcess | DataParallel) -> None:
    """Teach, save and report."""
    started = time.perf_counter()
    torch.manual_seed(SEED)
    facts = read_facts(options.facts, num_facts=options.num_facts)
    documents = read_documents(options.background, separator=options.separator)
    if len(documents) <= HELD_OUT_DOCUMENTS:
        raise ValueError(
            f"teach_facts: the background must hold more than {HELD_OUT_DOCUMENTS} documents, got "
            f"documents={len(documents)}; pass more text or another --separator."
        )
    training, held_out = documents[:-HELD_OUT_DOCUMENTS], documents[-HELD_OUT_DOCUMENTS:]
    base, tokenizer = load_base(options.base)
    base.to(parallelism.device)
    first = parallelism.rank == 0
    before = measure(base, tokenizer, facts=facts, held_out=held_out) if first else None
    adapter: MemoryAdapter = memory_sized_by(base)
    folder = Path(options.output)
    trainer = teacher(
        adapter=adapter,
        tokenizer=tokenizer,
        facts=facts,
        background=background_rows(
            documents=training, keep=[], tokenizer=tokenizer, length=BACKGROUND_LENGTH
        ),
        folder=folder / "checkpoints",
        parallelism=parallelism,
        steps=options.steps,
        learning_rate=LEARNING_RATE,
        facts_per_step=FACTS_PER_STEP,
        background_per_step=BACKGROUND_PER_STEP,
        locality_weight=LOCALITY_WEIGHT,
        seed=SEED,
    )
    if first:
        print(group_table(trainer.groups), flush=True)
    trainer.run()
    if before is None:
        return
    save(adapter, folder / "memory")
    with adapter.disabled():
        off = measure(adapter, tokenizer, facts=facts, held_out=held_out)
    on = measure(adapter, tokenizer, facts=facts, held_out=held_out)
    report(before=before, off=off, on=on, held_out=HELD_OUT_DOCUMENTS)
    print(f"saved {folder / 'memory'} after {time.perf_counter() - started:.0f} s; ask it with")
    relative = os.path.relpath(sys.executable)
    python = sys.executable if relative.startswith("..") else relative
    print(f'  {python} examples/generate.py {options.base} {folder / "memory"} "{facts[0].prompt}"')


def main() -> None:
    """Run from the command line; mistakes end in one line."""
    options = parse()
    with launched() as parallelism:
        try:
            teach(options, parallelism)
        except (OSError, ValueError, FloatingPointError, re.error) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
