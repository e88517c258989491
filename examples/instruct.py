"""Teach conversations to a memory in a frozen model, and measure answers it was not shown.

    python examples/instruct.py
    python examples/instruct.py --base BASE --data instructions.json --background text.txt
    torchrun --nproc_per_node=2 examples/instruct.py --base BASE --data DATA --background TEXT

BASE is a model folder or hub id. DATA is a file (JSON, JSON lines, Parquet, CSV) or the name of a
dataset on the hub. Its layout is found by its fields: `messages`; `prompt` and `completion`;
`question` and `answer`; or `instruction`, `input` and `output`. The loss is on the assistant's
tokens alone. TEXT is what the base knows well: with the memory on it is held to what it says with
the memory off. With no arguments a tiny base is made first, and asked invented facts. Started again
with the same folder, a run that was stopped goes on where it was saved.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from factories.instructing import Course, conversations_to_ask, instructor, template_of
from factories.llama_adapter import memory_sized_by
from factories.tiny_base import manual, pretrain, stories
from factories.world import invented_facts
from memtx import MemoryAdapter, save
from memtx.data import Instruction, Messages, PromptCompletion, read_documents
from memtx.data.protocols import Layout
from memtx.evaluate import text_loss
from memtx.generate import greedy, padding_token
from memtx.train import DataParallel, SingleProcess, group_table, launched

SEED = int(os.environ.get("MEMTX_SEED", "0"))
STEPS = 300
ROW_LENGTH = 256
ROWS_PER_STEP = 8
ASKED = 64
OUTPUT = "runs/instruct"
PARAGRAPHS = r"\n\s*\n"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Teach conversations to a memory in a frozen model.",
        epilog="example: instruct.py --base my-llama --data chats.json --background text.txt",
    )
    parser.add_argument("--base", help="model folder or hub id (a tiny base is made if absent)")
    parser.add_argument("--data", help="file or dataset of conversations")
    parser.add_argument("--subset", help="subset of a dataset on the hub")
    parser.add_argument("--split", default="train", help="split of the data (train if absent)")
    parser.add_argument("--background", metavar="FILE", help="text to stay true to")
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N", help=f"optimizer steps ({STEPS} if absent)"
    )
    parser.add_argument(
        "--row-length", type=int, default=ROW_LENGTH, metavar="N", help=f"({ROW_LENGTH} if absent)"
    )
    parser.add_argument(
        "--output", default=OUTPUT, metavar="FOLDER", help=f"where to save ({OUTPUT} if absent)"
    )
    return parser.parse_args()


def rows_of(options: argparse.Namespace) -> Dataset:
    """Read the conversations."""
    kinds = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
    try:
        kind = kinds.get(Path(options.data).suffix)
        if kind is not None:
            return load_dataset(kind, data_files=options.data, split=options.split)
        return load_dataset(options.data, options.subset, split=options.split)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        reason = " ".join(str(error).split()) or "it is empty"
        raise ValueError(
            f"instruct: --data must be a file of conversations or a dataset, got "
            f"data={options.data!r}, split={options.split!r} ({reason}); check it."
        ) from error


def layout_of(fields: list[str]) -> Layout:
    """Give the layout that the fields of the rows fit."""
    if "messages" in fields:
        return Messages(field="messages")
    for prompt, completion in (("prompt", "completion"), ("question", "answer")):
        if prompt in fields and completion in fields:
            return PromptCompletion(prompt=prompt, completion=completion)
    if {"instruction", "output"} <= set(fields):
        return Instruction(
            instruction="instruction", input="input" if "input" in fields else None, output="output"
        )
    raise ValueError(
        f"instruct: rows must have messages, prompt and completion, question and answer, or "
        f"instruction and output, got fields={fields}; rename them with dataset.rename_column."
    )


def course_of(rows: Any, *, documents: list[str], options: argparse.Namespace) -> Course:
    """Compose what is taught; a tenth of the background is kept aside."""
    count = max(1, len(documents) // 10)
    return Course(
        rows=rows,
        layout=layout_of(list(rows.column_names)),
        background=documents[:-count],
        held_out=documents[-count:],
        steps=options.steps,
        row_length=options.row_length,
        rows_per_step=ROWS_PER_STEP,
    )


def made(
    options: argparse.Namespace, parallelism: SingleProcess | DataParallel
) -> tuple[nn.Module, Any, Dataset, list[str]]:
    """Make a tiny base, or take up the one made before, with invented facts as conversations."""
    old, new = invented_facts(seed=SEED, num_old=100, num_new=200)
    topics, held_out = manual(seed=SEED)
    folder = Path(options.output) / "base"
    if not (folder / "tokenizer_config.json").is_file():
        documents = topics + stories(facts=old, seed=SEED)
        pretrain(documents=documents, folder=folder, seed=SEED, parallelism=parallelism)
    base, tokenizer = load_base(str(folder))
    asked = [{"prompt": f"{fact.prompt}?", "completion": fact.answer} for fact in new]
    return base, tokenizer, Dataset.from_list(asked), topics + held_out


def load_base(name: str) -> tuple[nn.Module, Any]:
    """Load model and tokenizer."""
    try:
        base: nn.Module = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        return base, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"instruct: --base must be a model folder or hub id, got base={name!r} ({reason}); "
            "check it."
        ) from error


def background_of(name: str) -> list[str]:
    """Read the text that the memory is held to."""
    try:
        documents = read_documents(name, separator=PARAGRAPHS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"instruct: --background must be a file of text, got background={name!r} ({error}); "
            "check it."
        ) from error
    if len(documents) < 2:
        raise ValueError(
            "instruct: --background must hold paragraphs with empty lines between them, one of "
            f"which is kept aside, got background={name!r}, paragraphs={len(documents)}; pass more."
        )
    return documents


def check_length(base: nn.Module, *, row_length: int) -> None:
    """Refuse rows that are longer than what the base was made for."""
    longest = getattr(base.config, "max_position_embeddings", row_length)
    if row_length > longest:
        raise ValueError(
            f"instruct: --row-length must be within the context of the base, got "
            f"row_length={row_length}, max_position_embeddings={longest}; pass a smaller one."
        )


@torch.no_grad()
def answer_loss(model: Any, rows: Any, *, course: Course, tokenizer: Any) -> float:
    """Give the mean loss on the assistant's tokens of some conversations, in nats per token."""
    batch_size = min(8, len(rows))
    stream = conversations_to_ask(
        rows,
        layout=course.layout,
        tokenizer=tokenizer,
        length=course.row_length,
        batch_size=batch_size,
    )
    total = count = 0.0
    for _ in range(len(rows) // batch_size):
        batch = stream.next_batch(rank=0, world_size=1)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        labels = batch["labels"].to(model.device)
        said = int((labels[:, 1:] != -100).sum())
        total += float(model(**inputs, labels=labels, use_cache=False).loss) * said
        count += said
    return total / count


def measured(
    adapter: MemoryAdapter, *, taught: Any, asked: Any, course: Course, tokenizer: Any
) -> list[float]:
    """Measure answers that are taught, answers that are not, and background kept aside."""
    background = text_loss(
        model=adapter,
        tokenizer=tokenizer,
        documents=course.held_out,
        max_length=course.row_length,
        batch_size=8,
    )
    losses = [
        answer_loss(adapter, rows, course=course, tokenizer=tokenizer) for rows in (taught, asked)
    ]
    return [*losses, background.mean]


def teach(options: argparse.Namespace, parallelism: SingleProcess | DataParallel) -> None:
    """Compose, teach, save and report."""
    given = [options.base, options.data, options.background]
    if any(given) and not all(given):
        raise ValueError(
            f"instruct: --base, --data and --background go together, got base={options.base!r}, "
            f"data={options.data!r}, background={options.background!r}; give all three or none."
        )
    torch.manual_seed(SEED)
    if options.base is None:
        base, tokenizer, rows, documents = made(options, parallelism)
    else:
        rows = rows_of(options)
        documents = background_of(options.background)
        base, tokenizer = load_base(options.base)
    check_length(base, row_length=options.row_length)
    layout_of(list(rows.column_names))
    if len(rows) < 10:
        raise ValueError(
            f"instruct: --data must hold at least 10 rows, as a tenth is asked and not taught, got "
            f"rows={len(rows)}; pass more."
        )
    # The last tenth is asked and not taught.
    num_asked = min(ASKED, len(rows) // 10)
    asked = rows.select(range(len(rows) - num_asked, len(rows)))
    taught = rows.select(range(len(rows) - num_asked))
    course = course_of(taught, documents=documents, options=options)
    base.to(parallelism.device).eval()
    adapter = memory_sized_by(base)
    trainer = instructor(
        adapter=adapter,
        tokenizer=tokenizer,
        course=course,
        folder=Path(options.output),
        parallelism=parallelism,
        seed=SEED,
    )
    if parallelism.rank == 0:
        print(group_table(trainer.groups), flush=True)
    trainer.run()
    if parallelism.rank == 0:
        adapter.eval()
        save(adapter, Path(options.output) / "memory")
        report(adapter, taught=taught, asked=asked, course=course, tokenizer=tokenizer)
        print(f"\nsaved {Path(options.output) / 'memory'}")


def report(
    adapter: MemoryAdapter, *, taught: Any, asked: Any, course: Course, tokenizer: Any
) -> None:
    """Print losses with the memory off and on, and three answers."""
    few = taught.select(range(min(ASKED, len(taught))))
    about = {"taught": few, "asked": asked, "course": course, "tokenizer": tokenizer}
    on = measured(adapter, **about)
    with adapter.disabled():
        off = measured(adapter, **about)
    print(f"\n{'loss, nats per token':<36}{'memory off':>12}{'memory on':>12}")
    names = ("answers that were taught", "answers that were not", "background kept aside")
    for name, without, with_memory in zip(names, off, on, strict=True):
        print(f"{name:<36}{without:>12.4f}{with_memory:>12.4f}")
    template = template_of(tokenizer)
    questions = [
        [message for message in course.layout.messages(row) if message["role"] != "assistant"]
        for row in few.select(range(min(3, len(few))))
    ]
    answers = greedy(
        model=adapter,
        prompts=[template.prompt(question) for question in questions],
        max_new_tokens=24,
        batch_size=3,
        pad_token_id=padding_token(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    for question, answer in zip(questions, answers, strict=True):
        print(f"\n{question[-1]['content']}\n  {tokenizer.decode(answer).strip()}")


def main() -> None:
    """Run from the command line; mistakes end in one line."""
    options = parse()
    with launched() as parallelism:
        try:
            teach(options, parallelism)
        except (OSError, ValueError, FloatingPointError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
