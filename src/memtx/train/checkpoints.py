"""Saving what is trained as an artifact, every few steps."""

import os
import re
import shutil
from pathlib import Path
from typing import final

from torch import nn

from memtx.adapters import MemoryAdapter
from memtx.checks import refusal, require_positive, unwritable
from memtx.spec import save
from memtx.spec.processes import whole
from memtx.train.loggers import Record
from memtx.train.run import Run

_NAME = re.compile(r"step-(\d{8})")


@final
class Checkpoints:
    """Saves a memory, or a whole model, every few steps and at the end, keeping the newest few.

    These are what one shares and loads; to go on with a run, save it with `RunCheckpoints`.

    Args:
        model: the adapter whose memory is saved, or the whole model.
        folder: each checkpoint is a folder `step-00000100` below it, as `save` writes it.
        every: steps between checkpoints.
        keep: how many of the newest to keep.

    Raises:
        ValueError: if `every` or `keep` is below 1.
        OSError: if the folder cannot be made or written.

    Source: the usual step folders; each is written under a temporary name and renamed.

    Example:
        >>> import tempfile, pathlib
        >>> from memtx.train.checkpoints import newest
        >>> newest(pathlib.Path(tempfile.mkdtemp())) is None
        True
    """

    def __init__(
        self, *, model: nn.Module, folder: str | os.PathLike[str], every: int, keep: int
    ) -> None:
        require_positive(owner=self, sizes={"every": every, "keep": keep})
        self.model = model
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        make_writable(self.folder, owner=self)

    def is_due(self, step: int) -> bool:
        """Tell whether a step is one to save at.

        Args:
            step: number of the step, from 1.
        """
        return step % self.every == 0

    def save(self, run: Run, record: Record) -> None:
        """Save the model and drop the oldest beyond `keep`; every process calls this.

        Args:
            run: the run, which tells the step.
            record: not used.

        Raises:
            FloatingPointError: if it is not finite; what was saved before stays.
        """
        step = run.step
        require_finite(self.model, step=step, owner=self)
        save(self.model, self.folder / f"step-{step:08d}")
        if run.parallelism.rank == 0:
            for old in _all(self.folder)[: -self.keep]:
                shutil.rmtree(old)

    def close(self) -> None:
        """Nothing is open: what `save` wrote is on disk."""


def make_writable(folder: Path, *, owner: object) -> None:
    """Make a folder, and find out now and not after hours of training if it cannot be written.

    Args:
        folder: the folder.
        owner: who writes.

    Raises:
        OSError: if it cannot be made or written.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        # Each process of a run probes the one folder: another may have been faster.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(owner=owner, path=folder, error=error) from error


def require_finite(model: nn.Module, *, step: int, owner: object) -> None:
    """Refuse to save what is not finite.

    Args:
        model: what is saved; of an adapter, its memory is looked at.
        step: number of the step.
        owner: who saves.

    Raises:
        FloatingPointError: if a parameter is not finite.
    """
    named = dict(model.named_parameters())
    if isinstance(model, MemoryAdapter):
        named = dict(model.named_memory_parameters())
    finite = {name: whole(parameter.isfinite().all()) for name, parameter in named.items()}
    broken = [name for name, each in finite.items() if not each]
    if broken:
        message = refusal(
            owner=owner,
            rule="what is saved must be finite",
            got={"step": step, "not finite": broken[:5]},
            remedy="lower the learning rate; the last checkpoint is kept",
        )
        raise FloatingPointError(message)


def _all(folder: Path) -> list[Path]:
    """Give the checkpoints, oldest first: by time, as a run before may have gone further."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def newest(folder: Path) -> Path | None:
    """Give the newest checkpoint of a folder, or None where there is none.

    Args:
        folder: a `Checkpoints` folder.
    """
    found = _all(folder) if folder.is_dir() else []
    return found[-1] if found else None
