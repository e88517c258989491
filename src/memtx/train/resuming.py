"""Reading a checkpoint of a run: is it whole, is it of this run, and into its place with it."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from memtx.checks import refusal, require
from memtx.spec.base_weights import agree
from memtx.train import run_files
from memtx.train.composition import changes, composition, differences, settings
from memtx.train.run import Run
from memtx.train.run_checkpoints import allow_one_process
from memtx.train.run_state import (
    MODEL,
    OPTIMIZER,
    model_tensors,
    place_for,
    set_optimizer_state,
    set_own_values,
    set_shared_values,
)
from memtx.train.together import Together, plain_errors

_SHOWN = 8


def newest_whole(
    candidates: list[Path], *, together: Together, owner: object
) -> tuple[Path | None, dict[str, str]]:
    """Give the newest checkpoint that is whole, and what is wrong with those newer than it.

    Args:
        candidates: checkpoints, oldest first, the same in every process.
        together: the processes, which share the reading.
        owner: who asks.

    Raises:
        ValueError: if there are some, and all are damaged.
    """
    place = together.parallelism
    damaged: dict[str, str] = {}
    for path in reversed(candidates):
        look = partial(run_files.damage, path, rank=place.rank, world_size=place.world_size)
        trouble = next((each for each in together.all_do(look) if each is not None), None)
        if trouble is None:
            return path, damaged
        damaged[path.name] = trouble
    if damaged:
        message = refusal(
            owner=owner,
            rule="a checkpoint must be whole",
            got=damaged,
            remedy="take them back from a copy, or start anew in another folder",
        )
        raise ValueError(message)
    return None, damaged


def take_up(checkpoint: Path, run: Run, *, together: Together) -> None:
    """Bring a run to where it was saved.

    Args:
        checkpoint: one that is whole.
        run: the run, at its start.
        together: its processes.

    Raises:
        ValueError: if it was saved by a run of something else; what differs is named.
    """
    kept = _read(checkpoint / run_files.STATE)
    _require_same(kept["composition"], composition(run), checkpoint=checkpoint)
    _tell_settings(kept["settings"], run, checkpoint=checkpoint)
    wanted = {MODEL + name: each for name, each in model_tensors(run.objective).items()}
    reader = FileSystemReader(checkpoint / run_files.TENSORS)
    for name, told in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(OPTIMIZER) and isinstance(told, TensorStorageMetadata):
            key, dtype = name.removeprefix(OPTIMIZER), told.properties.dtype
            wanted[name] = place_for(run, name=key, size=told.size, dtype=dtype)
    _load(wanted, reader, together=together)
    tensors = {
        name.removeprefix(OPTIMIZER): tensor
        for name, tensor in wanted.items()
        if name.startswith(OPTIMIZER)
    }
    set_optimizer_state(run, tensors=tensors, values=kept["optimizer"])
    set_shared_values(run, kept)
    rank, processes = run.parallelism.rank, kept["processes"]
    own = _read(checkpoint / run_files.rank_file(rank if rank < processes else 0))
    # Last, as all that was read above may have drawn numbers.
    set_own_values(run, own, is_own=rank < processes)


def take_weights(checkpoint: Path, run: Run, *, together: Together) -> None:
    """Give a run's model the weights of another run.

    Args:
        checkpoint: one that is whole.
        run: the run, at its start.
        together: its processes.

    Raises:
        ValueError: if its tensors are others, or what is frozen has other numbers.
    """
    kept, now = _read(checkpoint / run_files.STATE)["composition"], composition(run)
    found = differences(kept["tensors"], now["tensors"], path="tensors")
    found += _other_numbers(kept["frozen"], now["frozen"])
    _refuse(found, owner="InitFrom", checkpoint=checkpoint, remedy="start with Fresh()")
    wanted = {MODEL + name: each for name, each in model_tensors(run.objective).items()}
    reader = FileSystemReader(checkpoint / run_files.TENSORS)
    _load(wanted, reader, together=together)


def _load(wanted: dict[str, Tensor], reader: FileSystemReader, *, together: Together) -> None:
    """Read tensors into their places: each process reads its parts."""
    allow_one_process()
    group = together.group
    with plain_errors():
        load_tensors(
            dict(wanted), storage_reader=reader, process_group=group, no_dist=group is None
        )


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _require_same(then: dict[str, Any], now: dict[str, Any], *, checkpoint: Path) -> None:
    parts = [part for part in now if part != "frozen"]
    found = [line for part in parts for line in differences(then[part], now[part], path=part)]
    forms = [{name: told["form"] for name, told in each["frozen"].items()} for each in (then, now)]
    found += differences(*forms, path="frozen") or _other_numbers(then["frozen"], now["frozen"])
    remedy = "compose the run as it was saved, or take its weights alone with InitFrom"
    _refuse(found, owner="Resume", checkpoint=checkpoint, remedy=remedy)


def _other_numbers(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Give what is frozen in both runs with different numbers, or in one of them alone."""
    nothing = {"digits": ""}
    return [
        f"frozen.{name}: other numbers"
        for name in sorted({*then, *now})
        if not agree(then.get(name, nothing)["digits"], now.get(name, nothing)["digits"])
    ]


def _refuse(found: list[str], *, owner: str, checkpoint: Path, remedy: str) -> None:
    require(
        ok=not found,
        owner=owner,
        rule="the run must be composed as the one that was saved",
        got={"checkpoint": str(checkpoint), "differences": _few(found)},
        remedy=remedy,
    )


def _few(found: list[str]) -> list[str]:
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], f"and {more} more"] if more > 0 else found


def _tell_settings(then: dict[str, Any], run: Run, *, checkpoint: Path) -> None:
    """Warn of numbers that are not those the run was saved with."""
    found = changes(then, settings(run))
    if found and run.parallelism.rank == 0:
        message = refusal(
            owner="Resume",
            rule="a run that goes on should have the settings it was saved with",
            got={"checkpoint": str(checkpoint), "differences": _few(found)},
            remedy="nothing, if you changed them on purpose: it goes on with what they are now",
        )
        warnings.warn(message, UserWarning, stacklevel=6)
