"""`memtx inspect`: shows what texts read in a saved memory, as one HTML file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtx.cli.artifacts import loaded
from memtx.cli.command import CommandError, Commands, add_command, in_one_line
from memtx.cli.text import read_text

COMMAND = "memtx inspect"
SUMMARY = "show what texts read in a memory, as one HTML file"
# Of a bank that is read densely, unless the user says otherwise.
CHAPTERS = 16
MOST_CHAPTERS = 64


def add(commands: Commands) -> None:
    """Adds `memtx inspect` to the command line."""
    command = add_command(
        commands,
        name="inspect",
        summary=SUMMARY,
        examples=[
            'memtx inspect memory --base BASE --text "The capital of Kikovek is" '
            "--output report.html",
            "memtx inspect model --text-file one.txt --text-file other.txt --output report.html",
            'memtx inspect memory --base BASE --prompt "The ruler of Fefolen is called" '
            '--answer "Gainisil." --output report.html --json',
        ],
    )
    command.add_argument("path", metavar="PATH", type=Path, help="a saved memory or whole model")
    command.add_argument(
        "--base",
        metavar="BASE",
        help="the memory's base: a folder, or an id of the hub (default: the id that it records)",
    )
    command.add_argument(
        "--tokenizer", metavar="FOLDER", help="its tokenizer (default: that of base or model)"
    )
    command.add_argument("--text", action="append", default=[], help="a text; may be repeated")
    command.add_argument(
        "--text-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a text in a file (UTF-8); may be repeated",
    )
    command.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="the HTML file to write"
    )
    command.add_argument("--prompt", help="a prompt that is asked without each chapter in turn")
    command.add_argument("--answer", help="its answer")
    command.add_argument(
        "--bank", type=int, default=0, help="number of the bank these chapters are in (default: 0)"
    )
    command.add_argument(
        "--tokens-per-chapter",
        type=int,
        metavar="NUM",
        help="memory tokens of a chapter of a dense bank (default: as many as are empty in it, "
        f"else a {CHAPTERS}th of the bank)",
    )
    command.add_argument(
        "--max-tokens",
        type=int,
        default=1000,
        metavar="NUM",
        help="tokens of a text to read (default: 1000)",
    )
    command.add_argument(
        "--plots", metavar="FOLDER", type=Path, help="also draw pictures (needs memtx[plot])"
    )
    command.add_argument("--json", action="store_true", help="write the numbers as JSON")
    command.set_defaults(call=inspected)


def inspected(asked: argparse.Namespace) -> int:
    """Writes the report, and says where it is; returns 0."""
    texts = _texts(asked)
    fact = _fact(asked)
    with in_one_line(COMMAND):
        inspection = _inspection(asked, texts=texts, fact=fact)
    from memtx.usage.report import summary, write_report

    write_report(inspection, asked.output)
    size = asked.output.stat().st_size
    if asked.json:
        print(
            json.dumps(
                {"output": str(asked.output), "bytes": size, **summary(inspection)}, indent=2
            )
        )
    else:
        for text in inspection["texts"]:
            print(_line(text))
        print(f"wrote {asked.output} ({size / 1e6:.2f} MB)")
    return 0


def _line(text: dict[str, Any]) -> str:
    cut = ", its end left out" if text["cut"] else ""
    line = f"{text['name']}: {len(text['pieces'])} tokens{cut}"
    if text["loss_on"] is None:
        return line
    return (
        f"{line}; loss {text['loss_off']:.3f} without memory, {text['loss_on']:.3f} with it; "
        f"KL {text['mean_divergence']:.4f} nats per token"
    )


def _texts(asked: argparse.Namespace) -> dict[str, str]:
    """Give the texts of the command line by name."""
    found = [(_short(text), text) for text in asked.text]
    for path in asked.text_file:
        found.append((path.name, read_text(path, flag="--text-file", command=COMMAND)))
    if asked.prompt is not None and not found:
        found.append((_short(asked.prompt), f"{asked.prompt} {asked.answer}"))
    if not found:
        raise CommandError(
            f"{COMMAND}: there must be a text, got none; pass --text or --text-file."
        )
    named: dict[str, str] = {}
    for name, text in found:
        number = 2
        unique = name
        while unique in named:
            unique, number = f"{name} ({number})", number + 1
        named[unique] = text
    return named


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 40 else f"{flat[:39]}…"


def _fact(asked: argparse.Namespace) -> Any:
    if (asked.prompt is None) != (asked.answer is None):
        raise CommandError(
            f"{COMMAND}: --prompt and --answer must come together, got "
            f"prompt={asked.prompt!r}, answer={asked.answer!r}; pass both or neither."
        )
    if asked.prompt is None:
        return None
    from memtx.data import Fact

    return Fact(prompt=asked.prompt, answer=asked.answer)


def _inspection(asked: argparse.Namespace, *, texts: dict[str, str], fact: Any) -> dict[str, Any]:
    from memtx.usage.report import inspect_texts

    model, tokenizer = loaded(asked.path, base=asked.base, tokenizer=asked.tokenizer, owner=COMMAND)
    size = asked.tokens_per_chapter
    size = chapter_size(list(getattr(model, "banks", []))) if size is None else size
    print(f"reading {len(texts)} text(s)", file=sys.stderr)
    inspection = inspect_texts(
        model,
        tokenizer=tokenizer,
        texts=texts,
        title=f"What {asked.path.resolve().name} was read for",
        tokens_per_chapter=size,
        max_length=asked.max_tokens,
        fact=fact,
        bank=asked.bank,
    )
    if asked.plots is not None:
        _draw(model, tokenizer, texts, folder=asked.plots, size=size, most=asked.max_tokens)
    return inspection


def chapter_size(banks: Sequence[Any]) -> int:
    """Give how many memory tokens of a bank that is read densely are shown as a chapter.

    Empty tokens are a chapter of their own where that makes no more than 64: it shows the share of
    nothing.

    Args:
        banks: of the model.
    """
    largest = max(banks, key=lambda bank: int(bank.num_memory_tokens), default=None)
    if largest is None:
        return 1
    count, sinks = int(largest.num_memory_tokens), int(getattr(largest, "num_sinks", 0))
    if sinks and count <= MOST_CHAPTERS * sinks:
        return sinks
    return max(1, -(-count // CHAPTERS))


def _draw(
    model: Any, tokenizer: Any, texts: dict[str, str], *, folder: Path, size: int, most: int
) -> None:
    """Draw what each text read: the loads of all readers, and its tokens at each of them."""
    import torch

    from memtx.usage import record_reads
    from memtx.usage.plots import plot_load, plot_text
    from memtx.usage.report.words import pieces_of

    for number, (name, text) in enumerate(texts.items(), start=1):
        ids, pieces, _ = pieces_of(tokenizer, text, name=name, max_length=most)
        with (
            torch.no_grad(),
            record_reads(model, tokens_per_chapter=size, kept=1, watched=[]) as recording,
        ):
            model(input_ids=torch.tensor([ids], device=model.device))
        reads = recording.passages[0].reads
        for count in {each.num_chapters for each in reads.values()}:
            alike = {key: each for key, each in reads.items() if each.num_chapters == count}
            plot_load(alike, folder / f"text-{number}-load-{count}.png")
        for key, each in reads.items():
            plot_text(each, folder / f"text-{number}-{key}.png", tokens=pieces)
