"""Where the numbers of a run go; only the first process has loggers that write."""

import json
import math
import os
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from tqdm import tqdm

from memtx.checks import require_positive

Record = dict[str, float]


@runtime_checkable
class Logger(Protocol):
    """Receives a record after each step, and a last call when the run ends."""

    def log(self, record: Record) -> None:
        """Take one record: `step` and named numbers."""

    def close(self) -> None:
        """Release what is open."""


@final
class JsonLines:
    r"""One JSON object per record, appended to a file as it comes.

    Args:
        path: the file; folders above it are made, what it held before is replaced.

    Source: the JSON Lines format.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> logger = JsonLines(path=path)
        >>> logger.log({"step": 1, "loss": 2.5})
        >>> logger.close()
        >>> path.read_text()
        '{"step": 1, "loss": 2.5}\n'
    """

    def __init__(self, *, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append a record; a number that is not finite is written as null.

        Args:
            record: `step` and named numbers.
        """
        # JSON has no word for what is not finite.
        sound = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self._file.write(json.dumps(sound) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class ProgressBar:
    """A bar with loss, tokens per second and time left.

    Args:
        title: what stands before the bar.
        total_steps: steps of the run.

    Raises:
        ValueError: if `total_steps` is below 1.

    Source: `tqdm`.

    Example:
        >>> bar = ProgressBar(title="teach", total_steps=2)
        >>> bar.log({"step": 1, "loss": 2.5, "tokens_per_second": 100.0})
        >>> bar.close()
    """

    def __init__(self, *, title: str, total_steps: int) -> None:
        require_positive(owner=self, sizes={"total_steps": total_steps})
        self.title = title
        self.total_steps = total_steps
        self._bar = tqdm(total=total_steps, desc=title, unit="step", mininterval=0.5, ncols=80)

    def log(self, record: Record) -> None:
        """Move the bar to the record's step.

        Args:
            record: `step`, `loss` and `tokens_per_second`; other numbers are left out.
        """
        if "loss" in record:
            speed = f"{record['tokens_per_second']:,.0f} tok/s"
            self._bar.set_postfix_str(f"loss {record['loss']:.3f}, {speed}", refresh=False)
        self._bar.update(int(record["step"]) - self._bar.n)

    def close(self) -> None:
        """End the bar's line."""
        self._bar.close()
