"""What a run is made of while it runs, and what may look at it and change it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import nn

from memtx.data.protocols import Stream
from memtx.train.groups import ParameterGroup
from memtx.train.loggers import Record
from memtx.train.parallel import Parallelism
from memtx.train.terms import Objective


@final
@dataclass(kw_only=True)
class Run:
    """A run as it stands after `step` steps: all that a checkpoint has to keep.

    Args:
        objective: the model and its terms.
        wrapped: what is called, as the parallelism gave it.
        streams: batches by stream name; each stands at the next batch.
        groups: the parameter groups, as the optimizer has them.
        optimizer: torch's own.
        scaler: of the loss; disabled unless the precision is float16.
        parallelism: the processes.
        callbacks: those of the trainer; what they remember is saved with the run.
        settings: what else of the trainer a run that goes on is told of when it has changed.
        steps: how many the run has in all.
        step: how many are done.
        stop: why the run ends, or None while it goes on. A callback sets it, on every process
            alike. It ends after this step, or after the next where the batches of that one are at
            hand already: so the streams never stand beyond what was learnt.

    Source: memtx's own; what torchtitan calls its train state.

    Example:
        >>> Run.__name__  # `Trainer.run` makes it
        'Run'
    """

    objective: Objective
    wrapped: nn.Module
    streams: Mapping[str, Stream]
    groups: list[ParameterGroup]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    parallelism: Parallelism
    callbacks: "Sequence[Callback]"
    settings: Mapping[str, object]
    steps: int
    step: int
    stop: str | None


@runtime_checkable
class Callback(Protocol):
    """Looks at a run after every step, on every process, and may change it."""

    def after_step(self, run: Run, record: Record) -> None:
        """Look at the step that is done; add to its record, or set `run.stop` to end the run."""

    def state_dict(self) -> dict[str, object]:
        """Give what a resumed run has to know, as plain JSON values; `{}` where nothing is."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take it up again."""


@runtime_checkable
class Patient(Callback, Protocol):
    """A callback that has to be called right behind some steps alone.

    Of the others it may be told when the step after them is on its way, and the run stands there:
    so nobody waits for their numbers. It goes by the record's step, not by that of the run.
    """

    def is_urgent(self, step: int) -> bool:
        """Tell whether it has to be called right behind this step."""


@runtime_checkable
class Guard(Callback, Protocol):
    """A callback that looks at loss and gradient before they change the parameters."""

    def trouble(self, record: Record) -> str | None:
        """Give what is wrong with them, which ends the run here with an error, or None."""


@runtime_checkable
class Surrounding(Callback, Protocol):
    """A callback that is in force around all steps of a run."""

    def around(self, run: Run) -> AbstractContextManager[None]:
        """Give the context of the steps, entered when the run stands at its start."""


@runtime_checkable
class Saver(Protocol):
    """Writes something of a run to disk, called on every process."""

    def is_due(self, step: int) -> bool:
        """Tell whether it saves after this step; the trainer saves after the last one as well."""

    def save(self, run: Run, record: Record) -> None:
        """Save the run as it stands; it may go on in the background."""

    def close(self) -> None:
        """Wait until everything is on disk, and raise what went wrong there."""


@runtime_checkable
class Start(Protocol):
    """Where a run starts: fresh, from a checkpoint, or with weights of another."""

    def begin(self, run: Run) -> None:
        """Bring the run to its start, on every process, before the first step."""
