"""`memtx ask`: what a saved memory or model says, with the memory on and off."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from memtx.cli.artifacts import loaded
from memtx.cli.command import CommandError, Commands, add_command, in_one_line

COMMAND = "memtx ask"
EXAMPLES = [
    'memtx ask memory --base BASE "The capital of Kikovek is"',
    'memtx ask memory --base BASE --off "The capital of Kikovek is"',
    'memtx ask model --max-new-tokens 64 "Once upon a time"',
    "memtx ask memory --base BASE --json - < questions.txt",
]
MAX_NEW_TOKENS = 24
ON, OFF = "memory on", "memory off"


def add(commands: Commands) -> None:
    """Adds `memtx ask` to the command line."""
    command = add_command(
        commands,
        name="ask",
        summary="continue prompts greedily, with the memory off and on side by side",
        examples=EXAMPLES,
    )
    command.add_argument("path", metavar="PATH", type=Path, help="a saved memory or whole model")
    command.add_argument(
        "questions",
        metavar="QUESTION",
        nargs="+",
        help="a text to continue; - alone reads them from standard input, one a line",
    )
    command.add_argument(
        "--base",
        metavar="BASE",
        help="the memory's base: a folder, or an id of the hub (default: the id that it records)",
    )
    command.add_argument(
        "--tokenizer", metavar="FOLDER", help="its tokenizer (default: that of base or model)"
    )
    command.add_argument(
        "--max-new-tokens",
        type=int,
        default=MAX_NEW_TOKENS,
        metavar="NUM",
        help=f"tokens of an answer at most (default: {MAX_NEW_TOKENS})",
    )
    one = command.add_mutually_exclusive_group()
    one.add_argument("--off", action="store_true", help="only with the memory off: the bare base")
    one.add_argument("--on", action="store_true", help="only with the memory on")
    command.add_argument(
        "--json", action="store_true", help="write one JSON object a line, for each question"
    )
    command.set_defaults(call=asked_for)


def asked_for(asked: argparse.Namespace) -> int:
    """Answers every question as soon as it is read; returns 0."""
    if asked.max_new_tokens < 1:
        raise CommandError(
            f"{COMMAND}: --max-new-tokens must be at least 1, got "
            f"--max-new-tokens={asked.max_new_tokens}; pass more."
        )
    if "-" in asked.questions and len(asked.questions) > 1:
        raise CommandError(
            f"{COMMAND}: - must stand alone, got {len(asked.questions)} questions; write all of "
            f"them here, or all to standard input."
        )
    is_memory = (asked.path / "memory.json").is_file()
    if asked.off and (asked.path / "config.json").is_file() and not is_memory:
        raise CommandError(
            f"{COMMAND}: --off is for a memory, got PATH={asked.path}, a whole model, of which "
            f"none can be switched off; leave it out."
        )
    print(f"loading {asked.path}", file=sys.stderr, flush=True)
    with in_one_line(COMMAND):
        model, tokenizer = loaded(
            asked.path, base=asked.base, tokenizer=asked.tokenizer, owner=COMMAND
        )
        wanted = {OFF: not asked.on, ON: not asked.off} if is_memory else {"answer": True}
        kinds = [kind for kind, each in wanted.items() if each]
        for question in _questions(asked.questions):
            answers = {
                kind: _answer(model, tokenizer, question, kind=kind, most=asked.max_new_tokens)
                for kind in kinds
            }
            print(_written(question, answers, as_json=asked.json), flush=True)
    return 0


def _questions(given: list[str]) -> Iterator[str]:
    """Give the questions of the command line, or those of standard input as they come."""
    for text in sys.stdin if given == ["-"] else given:
        question = text.strip()
        if question:
            yield question
        elif given != ["-"]:
            raise CommandError(
                f"{COMMAND}: QUESTION must be a text, got QUESTION={text!r}; write one."
            )


def _answer(model: Any, tokenizer: Any, question: str, *, kind: str, most: int) -> str:
    from memtx.data import Fact, fact_tokens
    from memtx.evaluate.before import before_learning
    from memtx.generate import greedy, padding_token

    # As facts are asked: without the end token that some tokenizers put behind every text.
    ids, _ = fact_tokens(tokenizer, Fact(prompt=question, answer=""))
    if not ids:
        raise CommandError(
            f"{COMMAND}: QUESTION must have tokens, got QUESTION={question!r}, which the tokenizer "
            f"makes none of; write another."
        )
    state: AbstractContextManager[Any] = nullcontext(model)
    if kind == OFF:
        # As `forgetting` has it: with a LoRA in the base off as well.
        state = before_learning(owner=COMMAND, model=model, base=None)
    with state as now:
        (tokens,) = greedy(
            model=now,
            prompts=[ids],
            max_new_tokens=most,
            batch_size=1,
            pad_token_id=padding_token(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
    return " ".join(tokenizer.decode(tokens).split())


def _written(question: str, answers: dict[str, str], *, as_json: bool) -> str:
    if as_json:
        keys = {kind.replace(" ", "_"): answer for kind, answer in answers.items()}
        return json.dumps({"question": question, **keys}, ensure_ascii=False)
    lines = [f"  {kind + ':':<12}{answer}".rstrip() for kind, answer in answers.items()]
    return "\n".join([question, *lines])
