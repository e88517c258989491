"""Saving the memory while it is trained."""

import os
import re
import shutil
from pathlib import Path
from typing import final

from memtx.adapters import MemoryAdapter
from memtx.checks import refusal, require_positive, unwritable
from memtx.spec import save

_NAME = re.compile(r"step-(\d{8})")


@final
class Checkpoints:
    """Saves a memory every few steps and at the end, keeping the newest few.

    Args:
        model: the adapter whose memory is saved.
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
        self, *, model: MemoryAdapter, folder: str | os.PathLike[str], every: int, keep: int
    ) -> None:
        require_positive(owner=self, sizes={"every": every, "keep": keep})
        self.model = model
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        # A folder that cannot be written is found out now and not after hours of training.
        probe = self.folder / ".writable"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            # Each process of a run probes the one folder: another may have been faster.
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(owner=self, path=folder, error=error) from error

    def is_due(self, step: int) -> bool:
        """Tell whether a step is one to save at.

        Args:
            step: number of the step, from 1.
        """
        return step % self.every == 0

    def save(self, step: int) -> None:
        """Save the memory and drop the oldest beyond `keep`.

        Args:
            step: number of the step.

        Raises:
            FloatingPointError: if the memory is not finite; what was saved before stays.
        """
        memory = self.model.named_memory_parameters()
        broken = [name for name, parameter in memory if not parameter.isfinite().all()]
        if broken:
            message = refusal(
                owner=self,
                rule="a memory that is saved must be finite",
                got={"step": step, "not finite": broken[:5]},
                remedy="lower the learning rate; the last checkpoint is kept",
            )
            raise FloatingPointError(message)
        save(self.model, self.folder / f"step-{step:08d}")
        for old in _all(self.folder)[: -self.keep]:
            shutil.rmtree(old)


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
