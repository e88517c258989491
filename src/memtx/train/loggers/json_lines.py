"""Numbers of a run as lines of JSON."""

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO, final

from memtx.checks import unwritable
from memtx.train.loggers.protocol import Record, not_begun


@final
class JsonLines:
    r"""One JSON object per record, on disk as soon as it is there.

    A run that begins at step 0 replaces what the file held; a resumed run keeps the lines up to
    the step it goes on from and writes the later ones again. A line that a kill cut in two goes.

    Args:
        path: the file; folders above it are made.

    Raises:
        OSError: if the file cannot be written.

    Source: the JSON Lines format.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> logger = JsonLines(path=path)
        >>> logger.begin(step=0)
        >>> logger.log({"step": 1, "loss": 2.5})
        >>> logger.close()
        >>> path.read_text()
        '{"step": 1, "loss": 2.5}\n'
    """

    def __init__(self, *, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A place that cannot be written is found out now; what is there stays as it is.
            self.path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise unwritable(owner=self, path=self.path, error=error) from error

    def begin(self, step: int) -> None:
        """Open the file behind its last line of a step up to `step`.

        Args:
            step: how many steps of the run are done.
        """
        kept = [] if step == 0 else _lines_until(self.path, step=step)
        # Under another name first: a kill here loses no line of before.
        whole = self.path.with_name(f"{self.path.name}.tmp")
        whole.write_text("".join(kept), encoding="utf-8")
        whole.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append a record; a number that is not finite is written as null.

        Args:
            record: `step` and named numbers.

        Raises:
            ValueError: if no run has begun, or it was closed.
        """
        if self._file is None:
            raise not_begun(owner=self, record=record)
        # JSON has no word for what is not finite.
        sound = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self._file.write(json.dumps(sound) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lines_until(path: Path, *, step: int) -> list[str]:
    """Give the whole lines of a file that hold a record of a step up to `step`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [
        line
        for line in text.splitlines(keepends=True)
        if line.endswith("\n") and _step_of(line) <= step
    ]


def _step_of(line: str) -> float:
    try:
        record: Any = json.loads(line)
        return float(record["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
