"""What `memtx train` does with what a factory gave: run it, save it, tell what came of it."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from memtx.cli.command import CommandError, flat

if TYPE_CHECKING:
    from memtx.train import Trainer

COMMAND = "memtx train"


def trainers_of(made: Any, *, name: str) -> "dict[str, Callable[[], Trainer]]":
    """Give what makes each Trainer by name; one that stands alone has no name.

    Args:
        made: what a factory gave.
        name: how the user called the factory.

    Raises:
        CommandError: if there is none.
    """
    from memtx.train import Trainer

    def ready(found: Any) -> Callable[[], Trainer]:
        def give() -> Trainer:
            trainer = found() if callable(found) else found
            if not isinstance(trainer, Trainer):
                raise _no_trainer(trainer, name=name)
            return trainer

        return give

    alone = made if isinstance(made, Trainer) else getattr(made, "trainer", None)
    if isinstance(alone, Trainer):
        return {"": ready(alone)}
    several = getattr(made, "trainers", None)
    if isinstance(several, Mapping) and several:
        return {str(key): ready(each) for key, each in several.items()}
    raise _no_trainer(made, name=name)


def _no_trainer(made: Any, *, name: str) -> CommandError:
    return CommandError(
        f"{COMMAND}: FACTORY must give a Trainer, or something with one as `trainer` or several "
        f"in a dict `trainers`, got {type(made).__name__} from {name}; name another function."
    )


def train_one(
    trainer: "Trainer", *, name: str, folder: Path, tokenizer: Any, quiet: bool
) -> dict[str, Any]:
    """Run one training and save what it trained; every process calls this.

    Args:
        trainer: the training.
        name: what it is called among several; empty where it is alone.
        folder: where its folder goes.
        tokenizer: saved beside a whole model; None where there is none.
        quiet: whether the table of groups goes to the standard error stream.

    Raises:
        CommandError: if what is trained cannot be saved there.
    """
    from memtx.spec import save
    from memtx.train import ProgressBar, group_table

    first = trainer.parallelism.rank == 0
    model: Any = trainer.objective.model
    target = _target(model, name=name, folder=folder)
    if first:
        print(group_table(trainer.groups), file=sys.stderr if quiet else sys.stdout, flush=True)
        if not trainer.loggers:
            bar = ProgressBar(title=name or "train", total_steps=trainer.steps)
            trainer = replace(trainer, loggers=[bar])
    started = time.perf_counter()
    records = trainer.run()
    seconds = time.perf_counter() - started
    save(model, target)
    is_memory = target.joinpath("memory.json").is_file()
    if first and not is_memory and hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(target)
    measured: dict[str, float] = {}
    for record in records:
        measured |= {key: value for key, value in record.items() if key not in records[0]}
    return {
        "kind": "memory" if is_memory else "model",
        "saved": str(target),
        "base": str(model.config.name_or_path) if is_memory else None,
        "parameters": sum(p.numel() for g in trainer.groups for p in g.parameters()),
        "steps": trainer.steps,
        "steps_taken": len(records),
        "seconds": round(seconds, 1),
        "first": dict(records[0]) if records else None,
        "last": dict(records[-1]) if records else None,
        "measured": measured,
    }


def _target(model: Any, *, name: str, folder: Path) -> Path:
    """Give where a model will be saved; what would hinder that is told before it is trained."""
    from memtx.adapters import MemoryAdapter
    from memtx.spec.artifact import MEMORY, MODEL, WHOLE

    if not isinstance(model, (MemoryAdapter, *WHOLE)):
        raise CommandError(
            f"{COMMAND}: what is trained must be a MemoryAdapter or a whole model of memtx, got "
            f"model={type(model).__name__}; run its Trainer from Python."
        )
    layout = MEMORY if isinstance(model, MemoryAdapter) else MODEL
    target = folder / (name or layout.what)
    there = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    strangers = [each for each in there if each not in layout.names()]
    if strangers or (target.exists() and not target.is_dir()):
        raise CommandError(
            f"{COMMAND}: what is trained is saved as {target}, which must be free or a saved "
            f"{layout.what}, got {strangers[:5] or 'a file'} there; choose another --output."
        )
    return target


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Tell in one line whatever a factory and its training raise inside a `with` block.

    Args:
        name: how the user called the factory.
    """
    try:
        yield
    except CommandError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        raise CommandError(f"{COMMAND} {name}: {flat(error)}") from error
    # A user's own code may raise anything; where it did is what helps.
    except Exception as error:
        place = extract_tb(error.__traceback__)[-1]
        raise CommandError(
            f"{COMMAND}: {name} must compose and train without an error, got "
            f"{type(error).__name__}: {flat(error)} (at {place.filename}:{place.lineno}); mend it."
        ) from error
