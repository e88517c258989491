"""The folder of a run's checkpoints: its names, its checksums, what is whole and what is left over.

A checkpoint is a folder `step-00000100`: what torch.distributed.checkpoint wrote, in `tensors/`;
`run.json`, the same for all processes; `rank-00000.json` for each; and `manifest.json`, written
last, with size and sha256 of every other file. It is written as `.step-00000100.writing`.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from memtx.spec.files import checksum

MANIFEST = "manifest.json"
TENSORS = "tensors"
STATE = "run.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.step-\d{8,}\.(?:writing|dropped)")


def name_of(step: int) -> str:
    """Give the name of a step's checkpoint.

    Args:
        step: number of the step.
    """
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Give the step of a checkpoint.

    Args:
        path: one of those `checkpoints_in` gave.
    """
    return int(path.name.removeprefix("step-"))


def rank_file(rank: int) -> str:
    """Give the name of a process's own file.

    Args:
        rank: its number.
    """
    return f"rank-{rank:05d}.json"


def checkpoints_in(folder: Path) -> list[Path]:
    """Give the checkpoints of a folder, oldest first; whether they are whole is not looked at.

    Args:
        folder: it need not exist.
    """
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def files_in(checkpoint: Path) -> list[str]:
    """Give all files of a checkpoint but the manifest, by their paths in it, sorted.

    Args:
        checkpoint: its folder.
    """
    found = (path for path in checkpoint.rglob("*") if path.is_file())
    names = (path.relative_to(checkpoint).as_posix() for path in found)
    return sorted(name for name in names if name != MANIFEST)


def measured(checkpoint: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Give size and sha256 of some files.

    Args:
        checkpoint: the folder they are in.
        names: their paths in it.
    """
    return {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": checksum(checkpoint / name)}
        for name in names
    }


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk.

    Args:
        path: the file.
        text: what it holds.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def finish(writing: Path, *, manifest: dict[str, Any], keep: int) -> None:
    """Write the manifest, give a checkpoint its name, and drop the oldest of its folder.

    Args:
        writing: the folder, with all its other files.
        manifest: what it says.
        keep: how many checkpoints stay.
    """
    # Cut off anywhere, this text is no JSON any more: there is no newline at its end.
    write_text(writing / MANIFEST, json.dumps(manifest, indent=1))
    folder = writing.parent
    _sync(writing)
    writing.rename(folder / name_of(manifest["step"]))
    _sync(folder)
    for old in checkpoints_in(folder)[:-keep]:
        # Under its own name it would be a damaged checkpoint while it is removed.
        dropped = old.with_name(f".{old.name}.dropped")
        old.rename(dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def clean(folder: Path) -> None:
    """Remove what runs that were killed while they wrote left behind.

    Args:
        folder: of a run that is not being written just now.
    """
    for path in folder.iterdir():
        if _LEFT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint.

    Args:
        checkpoint: its folder.

    Raises:
        ValueError: if there is none, or it is not one.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        sound = manifest["format"] == FORMAT and STATE in manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST}: {type(error).__name__}: {error}") from error
    if not sound:
        raise ValueError(f"{MANIFEST} is of another format")
    return dict(manifest)


def damage(checkpoint: Path, *, rank: int, world_size: int) -> str | None:
    """Tell what is wrong with a checkpoint, or None; each of several processes reads a share.

    Args:
        checkpoint: its folder.
        rank: number of this process.
        world_size: how many share the reading.
    """
    try:
        files: dict[str, dict[str, Any]] = read_manifest(checkpoint)["files"]
    except ValueError as error:
        return str(error)
    for name, told in files.items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{name} is missing"
        if size != told["bytes"]:
            return f"{name} has {size} bytes of {told['bytes']}"
    for name in sorted(files)[rank::world_size]:
        if checksum(checkpoint / name) != files[name]["sha256"]:
            return f"{name} has another sha256 than {MANIFEST} says"
    return None
