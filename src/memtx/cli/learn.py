"""`memtx learn`: turns a document into a memory of a base, and says what it knows of it."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtx.cli.artifacts import pretrained
from memtx.cli.command import CommandError, Commands, add_command, in_one_line
from memtx.cli.text import documents_of, read_text

if TYPE_CHECKING:
    from memtx.train.documents import Background, Measures, TextLesson

COMMAND = "memtx learn"
EXAMPLES = [
    "memtx learn --base BASE --text chapter.txt --output memory",
    "memtx learn --base BASE --text chapter.txt --background stories.txt --output memory",
    "memtx learn --base BASE --text chapter.txt --steps 200 --output memory --json",
]
# The recipe of docs/learning.md.
STEPS, LEARNING_RATE, MEMORY_TOKENS, LENGTH = 300, 3e-3, 512, 128
TEXT_ROWS, READINGS, BACKGROUND_ROWS = 8, 4, 8
TEXT_WEIGHT, DISTILLATION_WEIGHT, LOCALITY_WEIGHT = 1.0, 0.2, 4.0
SAMPLES = 1
# Texts that the base makes up where no background is given.
OWN_ROWS = 256
PASSAGES, PROMPT_TOKENS, ANSWER_TOKENS = 8, 16, 16
# One break between lines parts documents; blank lines part paragraphs of one.
SEPARATOR = r"(?<!\n)\n(?!\n)"


def add(commands: Commands) -> None:
    """Adds `memtx learn` to the command line."""
    command = add_command(
        commands,
        name="learn",
        summary="turn a document into a memory, and say what the model knows of it then",
        examples=EXAMPLES,
    )
    command.add_argument(
        "--base", required=True, metavar="BASE", help="a model: a folder, or an id of the hub"
    )
    command.add_argument(
        "--text", required=True, type=Path, metavar="FILE", help="the document (UTF-8)"
    )
    command.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="where the memory is saved"
    )
    command.add_argument(
        "--background",
        type=Path,
        metavar="FILE",
        help="text that the model must stay true to (default: texts that the base makes up)",
    )
    command.add_argument(
        "--separator",
        default=SEPARATOR,
        metavar="REGEX",
        help="what stands between documents of the background (default: a single line break)",
    )
    numbers: list[tuple[str, type, Any, str]] = [
        ("--steps", int, STEPS, "optimizer steps"),
        ("--memory-tokens", int, MEMORY_TOKENS, "memory tokens of the bank"),
        ("--learning-rate", float, LEARNING_RATE, "at its largest"),
        ("--length", int, LENGTH, "tokens of a row"),
        ("--locality-weight", float, LOCALITY_WEIGHT, "of staying true to the background"),
        ("--distillation-weight", float, DISTILLATION_WEIGHT, "of what the base says that reads"),
        ("--samples", int, SAMPLES, "continuations that the base makes up for a piece"),
        ("--seed", int, 0, "decides every order"),
    ]
    for flag, kind, value, what in numbers:
        command.add_argument(
            flag, type=kind, default=value, metavar="NUM", help=f"{what} (default: {value})"
        )
    command.add_argument("--json", action="store_true", help="write the report as JSON")
    command.set_defaults(call=learned)


def learned(asked: argparse.Namespace) -> int:
    """Learns, saves and reports; returns 0."""
    text = read_text(asked.text, flag="--text", command=COMMAND)
    documents = None
    if asked.background is not None:
        background = read_text(asked.background, flag="--background", command=COMMAND)
        documents = documents_of(background, separator=asked.separator, command=COMMAND)
    _check(asked)
    started = time.perf_counter()
    with in_one_line(COMMAND):
        report = _learned(asked, text=text, documents=documents)
    report["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(report, indent=2) if asked.json else written(report))
    return 0


def _check(asked: argparse.Namespace) -> None:
    least = {"steps": 1, "memory_tokens": 1, "length": 16, "samples": 0}
    for name, bound in least.items():
        value = getattr(asked, name)
        if value < bound:
            flag = "--" + name.replace("_", "-")
            raise CommandError(
                f"{COMMAND}: {flag} must be at least {bound}, got {flag}={value}; pass more."
            )


def _lesson(asked: argparse.Namespace) -> "TextLesson":
    from memtx.train.documents import TextLesson

    return TextLesson(
        steps=asked.steps,
        learning_rate=asked.learning_rate,
        length=asked.length,
        text_rows=TEXT_ROWS,
        readings=READINGS,
        background_rows=BACKGROUND_ROWS,
        text_weight=TEXT_WEIGHT,
        distillation_weight=asked.distillation_weight,
        locality_weight=asked.locality_weight,
        samples=asked.samples,
        seed=asked.seed,
    )


def _learned(
    asked: argparse.Namespace, *, text: str, documents: list[str] | None
) -> dict[str, Any]:
    import torch

    from memtx.spec import save
    from memtx.spec.artifact import MEMORY
    from memtx.spec.files import require_place
    from memtx.train import ProgressBar
    from memtx.train.documents import (
        measures,
        memory_for_text,
        passages_of,
        text_trainer,
    )
    from memtx.train.documents.training import text_windows
    from memtx.usage import evenly_spaced, text_states

    lesson = _lesson(asked)
    require_place(asked.output, layout=MEMORY)
    base, tokenizer = _base(asked.base)
    torch.manual_seed(asked.seed)
    background = _background(base, tokenizer, documents=documents, lesson=lesson)
    _say("reading the text")
    windows = text_windows(tokenizer, [text], length=lesson.length)
    middle = base.config.get_text_config().num_hidden_layers // 2
    states = text_states(model=base, rows=windows, layer=middle)
    adapter = memory_for_text(base, start=evenly_spaced(states, num_rows=asked.memory_tokens))
    adapter.to(base.device)
    passages = passages_of(
        tokenizer, [text], num_passages=PASSAGES, prompt=PROMPT_TOKENS, answer=ANSWER_TOKENS
    )

    def measured() -> "Measures":
        return measures(
            adapter,
            tokenizer=tokenizer,
            documents=[text],
            held_out=background.held_out,
            passages=passages,
            length=lesson.length,
            batch_size=BACKGROUND_ROWS,
        )

    with adapter.disabled():
        before = measured()
    _say(f"loss on the text {before.text_loss:.3f}; learning")
    text_trainer(
        adapter,
        tokenizer=tokenizer,
        documents=[text],
        background=background,
        lesson=lesson,
        loggers=[ProgressBar(title="learn", total_steps=lesson.steps)],
    ).run()
    after = measured()
    save(adapter, asked.output)
    count = sum(len(row) for row in windows)
    return _report(asked, before=before, after=after, tokens=count, lesson=lesson)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _base(name: str) -> tuple[Any, Any]:
    """Load a base and its tokenizer, on a GPU where one is."""
    import torch

    _say(f"loading {name}")
    base, tokenizer = pretrained(name, owner=COMMAND)
    return base.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _background(
    base: Any, tokenizer: Any, *, documents: list[str] | None, lesson: "TextLesson"
) -> "Background":
    from memtx.train.documents import background_of, own_background

    if documents is not None:
        return background_of(documents, tokenizer=tokenizer, length=lesson.length)
    _say(f"no background given: the base makes up {OWN_ROWS} texts")
    return own_background(
        base,
        tokenizer=tokenizer,
        num_rows=OWN_ROWS,
        length=lesson.length,
        batch_size=32,
        seed=lesson.seed,
    )


def _report(
    asked: argparse.Namespace,
    *,
    before: "Measures",
    after: "Measures",
    tokens: int,
    lesson: "TextLesson",
) -> dict[str, Any]:
    return {
        "base": asked.base,
        "text": str(asked.text),
        "background": None if asked.background is None else str(asked.background),
        "output": str(asked.output),
        "text_tokens_read": tokens,
        "lesson": asdict(lesson),
        "before": asdict(before),
        "after": asdict(after),
        "text_loss_fall": 1.0 - after.text_loss / before.text_loss,
        "background_loss_rise": after.background_loss / before.background_loss - 1.0,
    }


def written(report: dict[str, Any]) -> str:
    """Write a report to be read at 80 columns or a little more."""
    before, after = report["before"], report["after"]
    own = "texts of the base's own" if report["background"] is None else report["background"]
    lines = [
        f"{'':<30}{'before':>9}{'after':>9}{'change':>10}",
        f"{'loss on the text read afresh':<30}{before['text_loss']:>9.3f}{after['text_loss']:>9.3f}"
        f"{-report['text_loss_fall']:>+10.1%}",
        f"{'  its tokens foretold':<30}{before['text_accuracy']:>9.1%}"
        f"{after['text_accuracy']:>9.1%}",
        f"{'loss on background':<30}{before['background_loss']:>9.3f}"
        f"{after['background_loss']:>9.3f}{report['background_loss_rise']:>+10.1%}",
        f"(background: rows kept aside of {own})",
    ]
    if after["passages"]:
        lines += ["", "without the text, behind the beginning of a passage, it goes on:"]
    for one, other in zip(before["passages"], after["passages"], strict=True):
        lines += [
            f"  {_flat(other['prompt'])} ...",
            f"    text    {_flat(other['wanted'])}",
            f"    before  {_flat(one['answer'])}",
            f"    after   {_flat(other['answer'])} "
            f"({other['correct']} of {other['num_tokens']} tokens right)",
        ]
    return "\n".join([*lines, f"saved {report['output']} after {report['seconds']:.0f} s"])


def _flat(text: str) -> str:
    return " ".join(text.split())
