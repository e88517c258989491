"""Saving what is trained when it is better than ever before."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import final

import torch
from torch import nn

from memtx.checks import require, require_positive
from memtx.spec import save
from memtx.train.callbacks import Better
from memtx.train.checkpoints import make_writable, require_finite
from memtx.train.loggers import Record
from memtx.train.run import Run
from memtx.train.run_files import checkpoints_in, name_of, write_text

NOTE = "best.json"


@final
class BestCheckpoint:
    """Saves a memory, or a whole model, when a number of the run is better than ever before.

    The folder holds the best alone, as `step-00000100`, and `best.json`, which tells its step and
    number. A run that is resumed goes on with it; one that begins anew replaces it.

    Args:
        model: the adapter whose memory is saved, or the whole model.
        folder: where.
        number: name of the number in the records, such as `text_loss`.
        better: `Lower(by=...)` or `Higher(by=...)`.
        every: steps between looks; an evaluation must have given the number at these.

    Raises:
        ValueError: if `every` is below 1.
        OSError: if the folder cannot be made or written.

    Source: `save_top_k=1` of other trainers.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from memtx.train.callbacks import Lower
        >>> BestCheckpoint(model=nn.Identity(), folder=tempfile.mkdtemp(), number="text_loss",
        ...                better=Lower(by=0.0), every=100).is_due(200)
        True
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        folder: str | os.PathLike[str],
        number: str,
        better: Better,
        every: int,
    ) -> None:
        require_positive(owner=self, sizes={"every": every})
        self.model = model
        self.folder = Path(folder)
        self.number = number
        self.better = better
        self.every = every
        # The best number so far, and the first step of this run.
        self.best: float | None = None
        self._first: int | None = None
        self._looked = False
        make_writable(self.folder, owner=self)

    def is_due(self, step: int) -> bool:
        """Tell whether a step is one to look at.

        Args:
            step: number of the step, from 1.
        """
        if self._first is None:
            self._first = step
        return step % self.every == 0

    def save(self, run: Run, record: Record) -> None:
        """Save the model if its number is better than the best so far; every process calls this.

        Args:
            run: the run, which tells the step.
            record: the step's numbers.

        Raises:
            ValueError: if a step to look at has no such number.
            FloatingPointError: if the model is not finite; what was saved before stays.
        """
        require(
            ok=self.number in record or not self.is_due(run.step),
            owner=self,
            rule="the number must be measured at every step that is looked at",
            got={"number": self.number, "step": run.step, "measured": sorted(record)},
            remedy="name one of these, and let `every` be that of the evaluation",
        )
        if self.number not in record:
            return
        if not self._looked:
            self.best, self._looked = self._kept(run), True
        # Rounding may differ between processes, but they must save together.
        value = _total(run, record[self.number]) / run.parallelism.world_size
        if not self._is_better(value):
            return
        require_finite(self.model, step=run.step, owner=self)
        save(self.model, self.folder / name_of(run.step))
        self.best = value
        if run.parallelism.rank == 0:
            self._note(step=run.step, value=value)

    def close(self) -> None:
        """Nothing is open: what `save` wrote is on disk."""

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return math.isfinite(value)
        return self.better.passes(value, self.better.than(self.best))

    def _kept(self, run: Run) -> float | None:
        """Give the best of the steps that a resumed run took before, as the first process reads it.

        What is noted of a step that this run has yet to take is of another run.
        """
        found = 0.0, 0.0
        path = self.folder / NOTE
        if run.parallelism.rank == 0 and path.is_file():
            note = json.loads(path.read_text(encoding="utf-8"))
            past = note["step"] < (self._first or 1)
            found = float(past and note["number"] == self.number), note["value"]
        has, value = (_total(run, each) for each in found)
        return value if has else None

    def _note(self, *, step: int, value: float) -> None:
        """Tell which is the best, and only then drop the others."""
        text = json.dumps({"step": step, "number": self.number, "value": value})
        write_text(self.folder / f".{NOTE}", text)
        (self.folder / f".{NOTE}").replace(self.folder / NOTE)
        for path in checkpoints_in(self.folder):
            if path.name != name_of(step):
                shutil.rmtree(path)


def _total(run: Run, number: float) -> float:
    return float(run.parallelism.all_sum(torch.tensor([number], dtype=torch.float64)))
