"""Numbers of a run for Weights & Biases."""

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from memtx.checks import require, unwritable
from memtx.train.loggers.protocol import Record, not_begun

MODES = ("online", "offline")
# The id of the run, kept beside wandb's own files, so that a resumed run goes on as the same one.
ID_FILE = "wandb-run-id"


@final
class WeightsAndBiases:
    """Numbers by name, under one run of Weights & Biases however often it is resumed.

    A run of W&B never goes back: what a resumed one logs again of the steps before the kill, which
    are the same numbers, it ignores. With `mode="offline"` nothing leaves the machine, and each
    resumption is a file of its own under the one id; `wandb sync --append` sends them later.

    Args:
        project: name of the project.
        name: what the run is called.
        folder: where wandb keeps its files; one folder for each run.
        mode: "online" or "offline".
        config: settings of the run, shown beside its numbers.

    Raises:
        ValueError: if `mode` is another.
        OSError: if the folder cannot be made.
        ModuleNotFoundError: if wandb is not installed: `pip install memtx[wandb]`.

    Source: the library `wandb`.

    Example:
        >>> import tempfile
        >>> logger = WeightsAndBiases(project="memtx", name="teach", folder=tempfile.mkdtemp(),
        ...                           mode="offline", config={"steps": 100})
        >>> logger.mode
        'offline'
    """

    def __init__(
        self,
        *,
        project: str,
        name: str,
        folder: str | os.PathLike[str],
        mode: str,
        config: Mapping[str, object],
    ) -> None:
        require(
            ok=mode in MODES,
            owner=self,
            rule=f"mode must be one of {', '.join(MODES)}",
            got={"mode": mode},
            remedy="leave the logger out to log nothing",
        )
        # A library that is missing is found out now and not when training starts.
        import wandb  # noqa: F401

        self.project = project
        self.name = name
        self.folder = Path(folder)
        self.mode = mode
        self.config = config
        self._run: Any = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(owner=self, path=self.folder, error=error) from error

    def begin(self, step: int) -> None:
        """Start the run, or go on with the one whose id lies in the folder.

        Args:
            step: how many steps of the run are done; 0 starts a new one.
        """
        import wandb

        kept = self.folder / ID_FILE
        if step == 0 or not kept.exists():
            kept.write_text(secrets.token_hex(4), encoding="utf-8")
        own = kept.read_text(encoding="utf-8")
        # wandb names a folder by id and second: two within one second would be one.
        while [*self.folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{own}")]:
            time.sleep(0.05)
        self._run = wandb.init(
            project=self.project,
            name=self.name,
            dir=str(self.folder),
            id=own,
            resume="allow" if self.mode == "online" else None,
            mode="online" if self.mode == "online" else "offline",
            config=dict(self.config),
            reinit="create_new",
            # The bar has the console to itself.
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, record: Record) -> None:
        """Log a record at its step.

        Args:
            record: `step` and named numbers.

        Raises:
            ValueError: if no run has begun, or it was closed.
        """
        if self._run is None:
            raise not_begun(owner=self, record=record)
        self._run.log(dict(record), step=int(record["step"]))

    def close(self) -> None:
        """Finish; wandb writes what is left before the process ends, and sends it if online."""
        if self._run is not None:
            self._run.finish()
            self._run = None
