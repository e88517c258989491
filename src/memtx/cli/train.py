"""`memtx train`: runs the training that a factory composes, in one process or several."""

import argparse
import inspect
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtx.cli.artifacts import pretrained
from memtx.cli.command import CommandError, Commands, add_command
from memtx.cli.find import check_arguments, find_factory, settings_of
from memtx.cli.text import training_text
from memtx.cli.training import COMMAND, telling, train_one, trainers_of

if TYPE_CHECKING:
    from memtx.train.parallel import Parallelism

EXAMPLES = [
    "memtx train qwen_adapter:tiny --output runs/tiny",
    "memtx train pretraining:tiny --text novel.txt --output runs/novel",
    "memtx train streaming:tiny_run --text novel.txt --output runs/stream --seed 1 --json",
    "memtx train my_lessons.py:lesson --base BASE --set steps=200 --output runs/mine",
    "torchrun --nproc_per_node=2 -m memtx train qwen_adapter:tiny --output runs/tiny",
]
FACTORIES = """\
what a factory may take, each by its name and only if its signature has it:
  folder       Path: the output folder
  seed         int: of --seed; torch is seeded with it before the factory is called
  parallelism  the processes, to be given to the Trainer and rows_per_process
  documents, held_out
               lists of text: nine tenths and the last tenth of --text
  base, tokenizer
               what --base names, loaded on the device of this process
  anything else
               by --set NAME=VALUE
what it must give, one of:
  a Trainer
  something with a Trainer as `trainer`, such as a Lesson of factories/teaching.py
  something with `trainers`, a dict of Trainers or of functions that make one, such as a Comparison
  of factories/pretraining.py; they run one after the other
The model of a Trainer must be a MemoryAdapter (saved as FOLDER/memory) or a whole model (saved as
FOLDER/model, with `tokenizer` beside it if there is one); those of `trainers` as FOLDER/NAME."""


def add(commands: Commands) -> None:
    """Adds `memtx train` to the command line."""
    command = add_command(
        commands,
        name="train",
        summary="run the training that a factory composes, and save what was trained",
        examples=EXAMPLES,
    )
    command.epilog = f"{FACTORIES}\n\n{command.epilog}"
    command.add_argument(
        "factory",
        metavar="FACTORY",
        help="MODULE:FUNCTION that composes a training; MODULE is a name of `memtx factories "
        "list`, a module, or a .py file",
    )
    command.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where everything goes (default: runs/FUNCTION)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="NUM", help="default: 0")
    command.add_argument("--text", metavar="FILE", type=Path, help="text to train on (UTF-8)")
    command.add_argument("--base", metavar="BASE", help="a model: a folder, or an id of the hub")
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of the factory; may be given several times",
    )
    command.add_argument(
        "--sharded", action="store_true", help="shard the model over the processes, layer by layer"
    )
    command.add_argument("--json", action="store_true", help="write the report as JSON")
    command.set_defaults(call=trained)


def trained(asked: argparse.Namespace) -> int:
    """Composes, trains, saves and reports; returns 0."""
    factory = find_factory(asked.factory, command=COMMAND)
    given = _given(asked, factory)
    folder = asked.output or Path("runs") / asked.factory.rpartition(":")[2]
    if "folder" in given:
        given["folder"] = folder
    with _processes(sharded=asked.sharded) as parallelism:
        report = _run(asked, factory, given=given, folder=folder, parallelism=parallelism)
    if parallelism.rank == 0:
        print(json.dumps(report, indent=2) if asked.json else written(report))
    return 0


def _given(asked: argparse.Namespace, factory: Callable[..., Any]) -> dict[str, Any]:
    """Give the arguments by name; processes and a base are still to be put in."""
    taken = inspect.signature(factory).parameters
    given: dict[str, Any] = {"folder": asked.output, "seed": asked.seed, "parallelism": None}
    given = {name: value for name, value in given.items() if name in taken}
    settings = settings_of(asked.set, command=COMMAND)
    for flag, names in {
        "--text": ("documents", "held_out"),
        "--base": ("base", "tokenizer"),
    }.items():
        value = getattr(asked, flag[2:])
        wanted = [name for name in names if name in taken]
        if value is not None and not wanted:
            raise CommandError(
                f"{COMMAND}: {flag} is for a factory that takes {' or '.join(names)}, got "
                f"{flag}={value} for {asked.factory}, which takes {', '.join(taken) or 'nothing'}; "
                f"leave it out."
            )
        needed = [name for name in wanted if taken[name].default is inspect.Parameter.empty]
        missing = [name for name in needed if name not in settings]
        if value is None and missing:
            raise CommandError(
                f"{COMMAND}: {flag} must name what {asked.factory} makes of {' and '.join(missing)}"
                f", got no {flag}; pass {flag} {'FILE' if flag == '--text' else 'BASE'}."
            )
        if value is not None:
            given |= dict.fromkeys(wanted)
    twice = sorted(settings.keys() & given.keys())
    if twice:
        raise CommandError(
            f"{COMMAND}: --set must name what no other option gives, got --set {twice[0]}="
            f"{settings[twice[0]]}; leave it out."
        )
    check_arguments(factory, given=given | settings, name=asked.factory, command=COMMAND)
    if asked.text is not None:
        documents, held_out = training_text(asked.text, command=COMMAND)
        texts = {"documents": documents, "held_out": held_out}
        given |= {name: texts[name] for name in given if name in texts}
    return given | settings


def _processes(*, sharded: bool) -> "AbstractContextManager[Parallelism]":
    from memtx.train import LayersAsUnits, launched, launched_sharded

    if not sharded:
        return launched()
    return launched_sharded(
        units=LayersAsUnits(), param_dtype=None, reduce_dtype=None, reshard_after_forward=True
    )


def _run(
    asked: argparse.Namespace,
    factory: Callable[..., Any],
    *,
    given: dict[str, Any],
    folder: Path,
    parallelism: "Parallelism",
) -> dict[str, Any]:
    """Train everything that the factory gives, and tell what came of it."""
    import torch

    from memtx.train.checkpoints import make_writable

    make_writable(folder, owner=COMMAND)
    if "parallelism" in given:
        given["parallelism"] = parallelism
    if asked.base is not None:
        loaded = dict(zip(("base", "tokenizer"), _base(asked.base, parallelism), strict=True))
        given |= {name: loaded[name] for name in given if name in loaded}
    torch.manual_seed(asked.seed)
    with telling(asked.factory):
        made = factory(**given)
    runs = {}
    for name, compose in trainers_of(made, name=asked.factory).items():
        with telling(asked.factory):
            trainer = compose()
            run = train_one(
                trainer,
                name=name,
                folder=folder,
                tokenizer=getattr(made, "tokenizer", given.get("tokenizer")),
                quiet=asked.json,
            )
            if hasattr(made, "base_name"):
                run["base"] = made.base_name
            runs[name or run["kind"]] = run
    return {
        "factory": asked.factory,
        "seed": asked.seed,
        "processes": parallelism.world_size,
        "device": parallelism.device.type,
        "output": str(folder),
        "runs": runs,
    }


def _base(name: str, parallelism: "Parallelism") -> tuple[Any, Any]:
    base, tokenizer = pretrained(name, owner=COMMAND)
    return base.to(parallelism.device), tokenizer


def written(report: dict[str, Any]) -> str:
    """Write a report, a few lines for each training."""
    lines = []
    for name, run in report["runs"].items():
        title = f"{name}: " if len(report["runs"]) > 1 else ""
        taken = f"{run['steps_taken']:,} of {run['steps']:,} steps in {run['seconds']:.0f} s"
        if run["first"] is not None:
            taken += f"; loss {run['first']['loss']:.4f} -> {run['last']['loss']:.4f}"
        lines.append(title + taken)
        # Those of single parts, such as `router/layers.1/dead`, stand in the JSON.
        whole = {key: value for key, value in run["measured"].items() if key.count("/") < 2}
        if whole:
            lines.append("  " + "  ".join(f"{key} {value:.4g}" for key, value in whole.items()))
        lines.append(f"  saved {run['saved']}")
    lines.append(
        f"{report['processes']} process(es) on {report['device']}; seed {report['seed']}; ask it by"
    )
    last = list(report["runs"].values())[-1]
    base = f" --base {last['base']}" if last["kind"] == "memory" and last["base"] else ""
    lines.append(f'  memtx ask {last["saved"]}{base} "..."')
    return "\n".join(lines)
