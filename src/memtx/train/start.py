"""Where a run starts: fresh, where it was saved, or with the weights of another."""

import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from memtx.checks import refusal
from memtx.train import run_files
from memtx.train.resuming import newest_whole, take_up, take_weights
from memtx.train.run import Run
from memtx.train.together import Together


@final
@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Start at the first step, with the model and the streams as they stand.

    Args:
        None: it takes no arguments.

    Source: memtx's own.

    Example:
        >>> Fresh()
        Fresh()
    """

    def begin(self, run: Run) -> None:
        """Leave the run as it was made.

        Args:
            run: the run.
        """


@final
@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run that was saved, from the newest checkpoint that is whole.

    One that is damaged is passed over with a warning that names it, and set aside. Exact, in any
    number of processes, are weights, optimizer, scaler, step and the data's position; random
    numbers, and what callbacks remember, in the same number alone.

    Args:
        folder: the folder of a `RunCheckpoints`.

    Source: memtx's own.

    Example:
        >>> Resume(folder="runs/one").folder
        'runs/one'
    """

    folder: str | os.PathLike[str]

    def begin(self, run: Run) -> None:
        """Bring the run to where it was saved; every process calls this.

        Args:
            run: the run.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if every one is damaged, or was saved by a run of something else.
        """
        if not _resumed(Path(self.folder), run, owner=self):
            message = refusal(
                owner=self,
                rule="folder must hold a checkpoint of a run",
                got={"folder": str(self.folder)},
                remedy="name the folder of its RunCheckpoints, or start with ResumeIfAny",
            )
            raise FileNotFoundError(message)


@final
@dataclass(frozen=True, kw_only=True)
class ResumeIfAny:
    """Go on with a run if it was saved, as `Resume` does, and start at the first step if not.

    A script that starts so can be started again and again until its run is done.

    Args:
        folder: the folder of a `RunCheckpoints`; it need not exist.

    Source: memtx's own.

    Example:
        >>> ResumeIfAny(folder="runs/one").folder
        'runs/one'
    """

    folder: str | os.PathLike[str]

    def begin(self, run: Run) -> None:
        """Bring the run to where it was saved, if it was; every process calls this.

        Args:
            run: the run.

        Raises:
            ValueError: if there are checkpoints, but every one is damaged or of something else.
        """
        _resumed(Path(self.folder), run, owner=self)


@final
@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Start at the first step with the trained weights of a run that was saved, and nothing else.

    What an artifact holds is read by `load` or `load_adapter` before the run is composed.

    Args:
        path: a checkpoint `step-00000100`, or the folder of a `RunCheckpoints`: its newest.

    Source: memtx's own.

    Example:
        >>> InitFrom(path="runs/one").path
        'runs/one'
    """

    path: str | os.PathLike[str]

    def begin(self, run: Run) -> None:
        """Give the model the saved weights; every process calls this.

        Args:
            run: the run.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if it is damaged, or of other tensors or another base.
        """
        together = Together(parallelism=run.parallelism)
        path = Path(self.path)
        if (path / run_files.MANIFEST).is_file():
            candidates = [path]
        else:
            candidates = run_files.checkpoints_in(path)
        found, damaged = newest_whole(candidates, together=together, owner=self)
        if found is None:
            message = refusal(
                owner=self,
                rule="path must be a checkpoint of a run, or a folder of them",
                got={"path": str(self.path)},
                remedy="read an artifact with load() or load_adapter() before composing the run",
            )
            raise FileNotFoundError(message)
        _warn(found, damaged=damaged, run=run, owner=self)
        take_weights(found, run, together=together)


def _resumed(folder: Path, run: Run, *, owner: object) -> bool:
    """Bring the run to its newest checkpoint that is whole, and tell whether there was any."""
    together = Together(parallelism=run.parallelism)
    # As the first process sees it: all must come to one decision.
    names = together.first_does(lambda: [p.name for p in run_files.checkpoints_in(folder)])
    candidates = [folder / name for name in names]
    found, damaged = newest_whole(candidates, together=together, owner=owner)
    if found is None:
        return False
    _warn(found, damaged=damaged, run=run, owner=owner)
    take_up(found, run, together=together)
    together.first_does(lambda: _set_aside([folder / name for name in damaged]))
    return True


def _warn(found: Path, *, damaged: dict[str, str], run: Run, owner: object) -> None:
    """Say which checkpoints were passed over."""
    if damaged and run.parallelism.rank == 0:
        message = refusal(
            owner=owner,
            rule="the newest checkpoint must be whole",
            got=damaged,
            remedy=f"the run starts from {found.name}, and the damaged ones are left aside",
        )
        warnings.warn(message, UserWarning, stacklevel=5)


def _set_aside(damaged: list[Path]) -> None:
    """Take what is damaged out of the way of the checkpoints that the run will write."""
    for path in damaged:
        aside, number = path.with_name(f"{path.name}.damaged"), 1
        while aside.exists():
            aside, number = path.with_name(f"{path.name}.damaged-{number}"), number + 1
        # Where nothing can be renamed, nothing will be saved either.
        with suppress(OSError):
            path.rename(aside)
