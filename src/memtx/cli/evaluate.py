"""`memtx evaluate`: what a saved memory or model knows, and what that cost, with intervals."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtx.cli.artifacts import loaded
from memtx.cli.command import CommandError, Commands, add_command, in_one_line
from memtx.cli.harness import harness_results, manager_of, require_harness
from memtx.cli.measuring import COMMAND, KINDS, fields_of, items_of, length_of, measured

if TYPE_CHECKING:
    from memtx.evaluate import Confidence, EvaluationResult

EXAMPLES = [
    "memtx evaluate memory --base BASE --facts facts.json --forgetting background.txt",
    "memtx evaluate memory --base BASE --edits counterfact.json --limit 100 --compare",
    "memtx evaluate model --perplexity text.txt --max-length 512 --stride 256 --json",
    "memtx evaluate memory --base BASE --choices arc.jsonl --field context=query --output it.json",
    "memtx evaluate memory --base BASE --tasks arc_easy,hellaswag --limit 200",
]
NOTES = """\
Each of --perplexity, --facts, --choices, --edits and --forgetting may be given several times, and
all of them together; they run in this order, then --tasks. Files of facts, questions and edits are
JSON or JSON lines; docs/evaluation.md says what every number is. --tasks asks the installed
lm-evaluation-harness (pip install 'memtx[evaluate]'); all of its options are those of
python -m memtx.evaluate.harness --model memtx --model_args path=PATH,base=BASE ..."""
MEASURES = {
    "perplexity": "perplexity of a text (UTF-8)",
    "facts": "exact recall of facts, asked greedily",
    "choices": "multiple-choice questions",
    "edits": "efficacy, generalisation and specificity of edits",
    "forgetting": "loss and KL against the model without its memory, on a background text",
}


def add(commands: Commands) -> None:
    """Adds `memtx evaluate` to the command line."""
    command = add_command(
        commands,
        name="evaluate",
        summary="measure what a saved memory or model knows and what that cost",
        examples=EXAMPLES,
    )
    command.epilog = f"{NOTES}\n\n{command.epilog}"
    command.add_argument("path", metavar="PATH", type=Path, help="a saved memory or whole model")
    command.add_argument(
        "--base",
        metavar="BASE",
        help="the memory's base: a folder, or an id of the hub (default: the id that it records)",
    )
    command.add_argument(
        "--tokenizer", metavar="FOLDER", help="its tokenizer (default: that of base or model)"
    )
    for name, what in MEASURES.items():
        command.add_argument(
            f"--{name}", metavar="FILE", type=Path, action="append", default=[], help=what
        )
    command.add_argument("--tasks", metavar="NAME,NAME", help="tasks of lm-evaluation-harness")
    command.add_argument(
        "--include-path", metavar="FOLDER", type=Path, help="own tasks for lm-evaluation-harness"
    )
    command.add_argument(
        "--compare",
        action="store_true",
        help="measure everything but forgetting once more with the memory off",
    )
    command.add_argument(
        "--separator",
        metavar="REGEX",
        help="what stands between documents of a text (default: a file is one document)",
    )
    command.add_argument(
        "--field",
        metavar="PART=FIELD",
        action="append",
        default=[],
        help="where a part of a question or an edit is, for records that name it otherwise",
    )
    _add_numbers(command)
    command.add_argument("--output", metavar="FILE", type=Path, help="also write the JSON there")
    command.add_argument("--json", action="store_true", help="write the results as JSON")
    command.set_defaults(call=evaluated)


def _add_numbers(command: argparse.ArgumentParser) -> None:
    numbers: list[tuple[str, int | None, str]] = [
        ("--limit", None, "facts, questions, edits, and items of a task, at most (default: all)"),
        ("--batch-size", 8, "rows of a forward (default: 8)"),
        ("--max-length", None, "tokens read at a time (default: the model's places, at most 1024)"),
        ("--stride", None, "tokens between windows of a text (default: half of --max-length)"),
        ("--fewshot", None, "examples before each question of a task (default: the task's own)"),
        ("--seed", None, "that of the training, to be kept with the results"),
        ("--resamples", 1_000, "draws of a bootstrap interval (default: 1000)"),
    ]
    for flag, value, what in numbers:
        command.add_argument(flag, type=int, default=value, metavar="NUM", help=what)
    command.add_argument(
        "--level", type=float, default=0.95, metavar="NUM", help="of intervals (default: 0.95)"
    )


def evaluated(asked: argparse.Namespace) -> int:
    """Reads, loads, measures and reports; returns 0."""
    tasks = _checked(asked)
    is_memory = (asked.path / "memory.json").is_file()
    if (asked.compare or asked.forgetting) and not is_memory:
        flag = "--compare" if asked.compare else "--forgetting"
        raise CommandError(
            f"{COMMAND}: {flag} is for a memory, which can be switched off, got PATH={asked.path}; "
            f"leave it out."
        )
    with in_one_line(COMMAND):
        # Every file first: a mistake in the last one is told before an hour of measuring.
        fields = fields_of(asked.field)
        items = {
            (kind, path): items_of(
                kind, path, limit=asked.limit, fields=fields, separator=asked.separator
            )
            for kind in KINDS
            for path in getattr(asked, kind)
        }
        confidence = _confidence(asked)
        manager = manager_of(tasks, include=asked.include_path) if tasks else None
        _say(f"loading {asked.path}")
        model, tokenizer = loaded(
            asked.path, base=asked.base, tokenizer=asked.tokenizer, owner=COMMAND
        )
        results = _results(asked, items, model=model, tokenizer=tokenizer, confidence=confidence)
        if tasks:
            _say(f"lm_eval: {', '.join(tasks)}")
            results += harness_results(
                model,
                tokenizer,
                tasks=tasks,
                manager=manager,
                batch_size=asked.batch_size,
                fewshot=asked.fewshot,
                limit=asked.limit,
                confidence=confidence,
            )
    _report(asked, results, device=str(model.device))
    return 0


def _checked(asked: argparse.Namespace) -> list[str]:
    """Refuse what cannot be before anything is read, and give the tasks."""
    least = {"batch_size": 1, "limit": 1, "stride": 1, "max_length": 2, "fewshot": 0}
    for name, bound in least.items():
        value = getattr(asked, name)
        if value is not None and value < bound:
            flag = "--" + name.replace("_", "-")
            raise CommandError(
                f"{COMMAND}: {flag} must be at least {bound}, got {flag}={value}; pass more."
            )
    tasks = [each.strip() for each in (asked.tasks or "").split(",") if each.strip()]
    if not tasks and not any(getattr(asked, kind) for kind in KINDS):
        raise CommandError(
            f"{COMMAND}: there must be something to measure, got nothing; pass "
            f"{', '.join('--' + kind for kind in KINDS)} or --tasks."
        )
    if asked.tasks is not None:
        require_harness(tasks)
    if asked.output is not None:
        folder = asked.output.resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        if asked.output.is_dir() or not os.access(folder, os.W_OK):
            raise CommandError(
                f"{COMMAND}: --output must be a file that can be written, got "
                f"--output={asked.output}; name another."
            )
    return tasks


def _confidence(asked: argparse.Namespace) -> "Confidence":
    from memtx.evaluate import Confidence

    return Confidence(level=asked.level, resamples=asked.resamples, seed=0)


def _results(
    asked: argparse.Namespace,
    items: dict[tuple[str, Path], list[Any]],
    *,
    model: Any,
    tokenizer: Any,
    confidence: "Confidence",
) -> "list[EvaluationResult]":
    """Measure everything that stands in files, one after the other."""
    from rich.console import Console

    from memtx.evaluate import EvaluationResult
    from memtx.evaluate.before import before_learning

    length = asked.max_length or length_of(model)
    stride = max(1, length // 2) if asked.stride is None else asked.stride
    sizes = {"batch_size": asked.batch_size, "max_length": length, "stride": stride}
    console = Console(stderr=True)
    results = []
    for number, ((kind, path), held) in enumerate(items.items(), start=1):
        what, of = KINDS[kind]
        _say(f"{number} of {len(items)}: {what} of {path.name}, {len(held):,} {of}")
        both = asked.compare and kind != "forgetting"
        for memory in ("off", "on") if both else ("on",):
            started = time.perf_counter()
            with console.status(f"{what} of {path.name}"):
                if memory == "on":
                    found = measured(kind, held, model=model, tokenizer=tokenizer, sizes=sizes)
                else:
                    with before_learning(owner=COMMAND, model=model, base=None) as now:
                        found = measured(kind, held, model=now, tokenizer=tokenizer, sizes=sizes)
            details = {"file": str(path), of: len(held), "separator": asked.separator, **sizes}
            details |= {"memory": memory, "seconds": round(time.perf_counter() - started, 2)}
            results.append(
                EvaluationResult(
                    name=f"{what} of {path.name}" + (f", memory {memory}" if both else ""),
                    metrics=found.metrics(confidence),
                    seed=asked.seed,
                    details=details,
                )
            )
    return results


def _report(asked: argparse.Namespace, results: "list[EvaluationResult]", *, device: str) -> None:
    from memtx.evaluate import table
    from memtx.spec.header import version

    report = {
        "path": str(asked.path),
        "base": asked.base,
        "memtx": version(),
        "device": device,
        "level": asked.level,
        "results": [asdict(each) for each in results],
    }
    text = json.dumps(report, indent=2, allow_nan=False)
    if asked.output is not None:
        asked.output.write_text(text + "\n", encoding="utf-8")
    if asked.json:
        print(text)
        return
    print(table(results))
    if asked.output is not None:
        print(f"wrote {asked.output}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
