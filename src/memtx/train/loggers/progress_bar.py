"""Numbers of a run on the console, by rich."""

import math
import time
from collections.abc import Mapping
from typing import Any, final

from memtx.checks import require_positive
from memtx.train.loggers.protocol import Record, not_begun

# Seconds between two drawings of the bar, and between two lines where there is no terminal.
REDRAWN, PRINTED = 0.5, 10.0
ON_THE_BAR = {"step", "loss", "tokens_per_second"}
TITLE = 12
# Lines for the other numbers below the bar, and for those above it.
BELOW = 2


@final
class ProgressBar:
    """A bar with loss, tokens per second and time left; below it the other numbers.

    Numbers that come now and then, such as those of evaluations, are printed above the bar and
    stay; what does not fit into two lines is left to other loggers. Where the output is no
    terminal, a line is printed every ten seconds instead.

    Args:
        title: what stands before the bar.
        total_steps: steps of the run.

    Raises:
        ValueError: if `total_steps` is below 1.

    Source: the library `rich`; it writes to the standard error stream.

    Example:
        >>> bar = ProgressBar(title="teach", total_steps=2)
        >>> bar.begin(step=0)
        >>> bar.log({"step": 1, "loss": 2.5, "tokens_per_second": 100.0})
        >>> bar.close()
    """

    def __init__(self, *, title: str, total_steps: int) -> None:
        require_positive(owner=self, sizes={"total_steps": total_steps})
        self.title = title
        self.total_steps = total_steps
        self._live: Any = None
        self._progress: Any = None
        self._before: set[str] | None = None
        self._record: Record = {}
        self._shown = 0.0

    def begin(self, step: int) -> None:
        """Show the bar, at a step.

        Args:
            step: how many steps of the run are done.
        """
        from rich.console import Console
        from rich.live import Live

        self._record = {"step": step}
        self._console = Console(stderr=True)
        self._progress = _progress(console=self._console, width=len(self.title))
        self._task = self._progress.add_task(
            self.title, total=self.total_steps, completed=step, numbers=self._state()
        )
        self._before = None
        self._shown = -PRINTED
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
            self._draw()

    def log(self, record: Record) -> None:
        """Move the bar to the record's step.

        Args:
            record: `step` and named numbers; `loss` and `tokens_per_second` stand on the bar.

        Raises:
            ValueError: if no run has begun, or it was closed.
        """
        if self._progress is None:
            raise not_begun(owner=self, record=record)
        self._record = record
        occasional = set() if self._before is None else record.keys() - self._before
        self._before = record.keys() - occasional
        if occasional:
            rare = _listed({key: value for key, value in record.items() if key in occasional})
            rare[0] = f"{self.title} step {int(record['step']):,}: {rare[0]}"
            for line in _packed(rare, width=self._console.width):
                self._print(line)
        if self._live is not None:
            if time.monotonic() - self._shown >= REDRAWN:
                self._draw()
        elif time.monotonic() - self._shown >= PRINTED:
            self._print_state()

    def close(self) -> None:
        """End with the bar as it stands."""
        if self._live is not None:
            self._draw()
            self._live.stop()
        elif self._before is not None:
            self._print_state()
        self._live = self._progress = self._before = None

    def _state(self) -> str:
        """Write step, loss and speed, as far as the record has them."""
        record = self._record
        parts = [f"{int(record['step']):,}/{self.total_steps:,}"]
        parts += [f"loss {_short(record['loss'])}"] if "loss" in record else []
        if "tokens_per_second" in record:
            parts.append(f"{record['tokens_per_second']:,.0f} tok/s")
        return "  ".join(parts)

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        # Here alone: most records come and go between two drawings.
        step = int(self._record["step"])
        self._progress.update(self._task, completed=step, numbers=self._state())
        usual = (self._before or set()) - ON_THE_BAR
        rest = _listed({key: value for key, value in self._record.items() if key in usual})
        below = _packed(rest, width=self._console.width - 2)
        lines = [Text(f"  {line}", style="dim", no_wrap=True) for line in below]
        self._live.update(Group(self._progress, *lines), refresh=True)
        self._shown = time.monotonic()

    def _print_state(self) -> None:
        self._print(f"{self.title} {self._state()}")
        self._shown = time.monotonic()

    def _print(self, line: str) -> None:
        # As text: a title may hold brackets, which are markup to rich.
        self._console.print(line, markup=False, highlight=False)


def _progress(*, console: Any, width: int) -> Any:
    """Make a bar that takes what is left of a line, behind a title of at most so many letters."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    title = Column(no_wrap=True, overflow="ellipsis", max_width=min(width, TITLE))
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=title),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        expand=True,
    )


def _listed(record: Mapping[str, float]) -> list[str]:
    return [f"{name} {_short(value)}" for name, value in record.items()]


def _packed(items: list[str], *, width: int) -> list[str]:
    """Lay items into a few lines without breaking one; what does not fit is left out, marked."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        elif len(lines) < BELOW:
            lines.append(item[:width])
        else:
            lines[-1] = f"{lines[-1][: width - 2]} …"
            break
    return lines


def _short(value: float) -> str:
    """Write a number in few letters: three decimals where they tell something."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e15:
        return f"{round(value):,}"
    return f"{value:.3f}" if 1e-2 <= abs(value) < 1e5 else f"{value:.2e}"
