"""Numbers of a run for TensorBoard."""

import os
from pathlib import Path
from typing import Any, final

from memtx.train.loggers.protocol import Record, not_begun


@final
class TensorBoard:
    """Scalars by name, as TensorBoard reads them.

    A run that begins, fresh or resumed, hides what the folder holds of its own steps: TensorBoard
    shows each step once.

    Args:
        folder: where the event files go; one folder for each run.

    Raises:
        ModuleNotFoundError: if tensorboard is not installed: `pip install memtx[tensorboard]`.

    Source: `torch.utils.tensorboard.SummaryWriter`, with its `purge_step`.

    Example:
        >>> import tempfile
        >>> logger = TensorBoard(folder=tempfile.mkdtemp())
        >>> logger.begin(step=0)
        >>> logger.log({"step": 1, "loss": 2.5})
        >>> logger.close()
    """

    def __init__(self, *, folder: str | os.PathLike[str]) -> None:
        # A library that is missing is found out now and not when training starts.
        import torch.utils.tensorboard  # noqa: F401

        self.folder = Path(folder)
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Open an event file that replaces what the folder holds of later steps.

        Args:
            step: how many steps of the run are done.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(self.folder), purge_step=step + 1)

    def log(self, record: Record) -> None:
        """Write each number of a record but the step as a scalar.

        Args:
            record: `step` and named numbers.

        Raises:
            ValueError: if no run has begun, or it was closed.
        """
        if self._writer is None:
            raise not_begun(owner=self, record=record)
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, global_step=int(record["step"]))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
