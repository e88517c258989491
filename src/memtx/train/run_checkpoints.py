"""Saving a whole run while it goes on."""

import os
import shutil
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from memtx.checks import refusal, require, require_positive
from memtx.spec.header import version
from memtx.train import run_files
from memtx.train.checkpoints import make_writable
from memtx.train.composition import composition, settings
from memtx.train.loggers import Record
from memtx.train.run import Run
from memtx.train.run_state import as_text, own_values, shared_values, tensors_of
from memtx.train.together import Together, plain_errors

# Said by torch whenever there is one process, which is no mistake here.
_ALONE = "torch.distributed is disabled, unavailable or uninitialized"


def allow_one_process() -> None:
    """Let torch save and load in one process without a warning each time."""
    warnings.filterwarnings("ignore", message=_ALONE, category=UserWarning)


@final
@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run as it stood after a step, in this process's own memory.

    Args:
        step: number of the step.
        tensors: copies on the CPU, by name; of a sharded tensor this process's part.
        shared: the text of what all processes have in common.
        own: the text of this process's own values.

    Source: the staging of `torch.distributed.checkpoint.async_save`.

    Example:
        >>> Snapshot(step=1, tensors={}, shared="{}", own="{}").step
        1
    """

    step: int
    tensors: Mapping[str, Tensor]
    shared: str
    own: str


def snapshot(run: Run, *, composed: Mapping[str, Any]) -> Snapshot:
    """Copy all that is to be kept of a run.

    Args:
        run: the run.
        composed: its composition.

    Raises:
        ValueError: if a state is not of plain JSON values.
    """
    tensors, values = tensors_of(run)
    shared = shared_values(run) | {"optimizer": values}
    shared |= {"composition": composed, "settings": settings(run)}
    shared["processes"] = run.parallelism.world_size
    return Snapshot(
        step=run.step,
        tensors={name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()},
        shared=as_text(shared),
        own=as_text(own_values(run)),
    )


@final
class RunCheckpoints:
    """Saves the whole run every few steps and at the end, keeping the newest few.

    A save copies the run to the CPU's memory, and the run goes on while a thread writes the copy:
    under a temporary name, which is changed when everything is on the disk. One is written at a
    time. A save that fails is warned of when the next one is due, which tries again; two in a row,
    or the last one, end the run with an error. What was saved before stays whole.

    Args:
        folder: each checkpoint is a folder `step-00000100` below it; every process sees it.
        every: steps between checkpoints.
        keep: how many of the newest to keep; there is room for one more while it is written.

    Raises:
        ValueError: if `every` or `keep` is below 1.
        OSError: if the folder cannot be made or written.

    Source: `torch.distributed.checkpoint`, with checksums and the data's position beside it.

    Example:
        >>> import tempfile
        >>> RunCheckpoints(folder=tempfile.mkdtemp(), every=10, keep=2).is_due(20)
        True
    """

    def __init__(self, *, folder: str | os.PathLike[str], every: int, keep: int) -> None:
        require_positive(owner=self, sizes={"every": every, "keep": keep})
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self._together: Together | None = None
        self._composed: dict[str, Any] = {}
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failed_before = False
        self._looked = False
        make_writable(self.folder, owner=self)

    def is_due(self, step: int) -> bool:
        """Tell whether a step is one to save at.

        Args:
            step: number of the step, from 1.

        Raises:
            ValueError: when it is asked first, if the folder holds a checkpoint of this step or of
                a later one: it is of another run.
        """
        if not self._looked:
            self._looked = True
            ahead = [p.name for p in run_files.checkpoints_in(self.folder)[-1:]]
            require(
                ok=not ahead or ahead[0] < run_files.name_of(step),
                owner=self,
                rule="the folder must hold no checkpoint that the run has not come to yet",
                got={"folder": str(self.folder), "newest": ahead[:1], "next step": step},
                remedy="start with ResumeIfAny(folder=...), or name another folder",
            )
        return step % self.every == 0

    def save(self, run: Run, record: Record) -> None:
        """Copy the run and begin to write the copy; every process calls this.

        Args:
            run: the run.
            record: not used.

        Raises:
            ValueError: if a state cannot be kept.
            OSError: if the last two saves failed.
        """
        self._wait()
        if self._failure is not None:
            self._tell_failure(run, ends=self._failed_before)
        self._failed_before, self._failure = self._failure is not None, None
        if self._together is None or self._together.parallelism is not run.parallelism:
            self._together = Together(parallelism=run.parallelism)
            self._composed = composition(run)
        allow_one_process()
        taken = snapshot(run, composed=self._composed)
        # A daemon: a process that dies of something else does not wait for it.
        self._writer = threading.Thread(
            target=self._write, args=(taken, self._together), daemon=True, name="run-checkpoint"
        )
        self._writer.start()

    def close(self) -> None:
        """Wait until everything is on disk.

        Raises:
            OSError: if the last save failed.
        """
        self._wait()
        failure, self._failure, self._failed_before = self._failure, None, False
        # Another run may use it after this one: it is looked at anew, and has processes of its own.
        self._looked, self._together = False, None
        if failure is not None:
            raise OSError(self._message(failure)) from failure

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _message(self, failure: Exception) -> str:
        return refusal(
            owner=self,
            rule="a checkpoint must be written whole",
            got={"folder": str(self.folder), "error": str(failure)},
            remedy="make room, or see what the error says; those saved before are whole",
        )

    def _tell_failure(self, run: Run, *, ends: bool) -> None:
        failure = self._failure
        if failure is None:
            return
        if ends:
            self._failure = None
            raise OSError(self._message(failure)) from failure
        if run.parallelism.rank == 0:
            message = f"{self._message(failure)} The run goes on, and saves again now."
            warnings.warn(message, UserWarning, stacklevel=4)

    def _write(self, taken: Snapshot, together: Together) -> None:
        """Write a copy, in a thread; what goes wrong is kept for the thread of the run."""
        writing = self.folder / f".{run_files.name_of(taken.step)}.writing"
        try:
            write_checkpoint(taken, writing, together=together, keep=self.keep)
        except Exception as error:
            self._failure = error
            if together.parallelism.rank == 0:
                shutil.rmtree(writing, ignore_errors=True)


def write_checkpoint(taken: Snapshot, writing: Path, *, together: Together, keep: int) -> None:
    """Write a copy of a run under a temporary name, and rename it; every process calls this.

    Args:
        taken: this process's copy.
        writing: the folder to write in, beside the checkpoints there are.
        together: the processes.
        keep: how many checkpoints stay.

    Raises:
        OSError: in every process, if one of them could not write.
    """
    place = together.parallelism

    def begin() -> None:
        run_files.clean(writing.parent)
        writing.mkdir()

    def write_own() -> None:
        run_files.write_text(writing / run_files.rank_file(place.rank), taken.own)
        if place.rank == 0:
            run_files.write_text(writing / run_files.STATE, taken.shared)

    def measure() -> dict[str, Any]:
        return run_files.measured(writing, names[place.rank :: place.world_size])

    together.first_does(begin)
    with plain_errors():
        save_tensors(
            dict(taken.tensors),
            storage_writer=FileSystemWriter(writing / run_files.TENSORS),
            process_group=together.group,
            no_dist=together.group is None,
        )
    together.all_do(write_own)
    names: list[str] = together.first_does(lambda: run_files.files_in(writing))
    files = {name: each for part in together.all_do(measure) for name, each in part.items()}
    manifest = {
        "format": run_files.FORMAT,
        "step": taken.step,
        "processes": place.world_size,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "memtx": version(),
        "torch": torch.__version__,
        "files": dict(sorted(files.items())),
    }
    together.first_does(lambda: run_files.finish(writing, manifest=manifest, keep=keep))
