"""Being asked by the system to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import final

# Why a run stops of which another process was asked to.
ELSEWHERE = "another process was asked to stop"


@final
@dataclass(kw_only=True)
class StopRequest:
    """Whether this process was asked to stop.

    Args:
        name: the signal's name, or None while there was none.

    Source: memtx's own.

    Example:
        >>> StopRequest(name=None).name is None
        True
    """

    name: str | None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Take note of SIGTERM and SIGINT inside a `with` block instead of dying of them.

    A second SIGINT raises KeyboardInterrupt where the program stands. Behind the block the signals
    do what they did before. Only a program's main thread can take note of them.
    """
    request = StopRequest(name=None)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if number == signal.SIGINT and request.name == "SIGINT":
            raise KeyboardInterrupt
        request.name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(stop: str | None) -> None:
    """End the program as a signal would have done, if it was one that ended a run.

    Called when everything is saved and closed: what stands behind the run in a script was meant
    for a run that is done.

    Args:
        stop: why the run ended.

    Raises:
        KeyboardInterrupt: after SIGINT; a script that does not catch it exits with 130.
        SystemExit: with 143 after SIGTERM, or where another process was asked to stop.
    """
    if stop == "SIGINT":
        raise KeyboardInterrupt
    if stop in {"SIGTERM", ELSEWHERE}:
        raise SystemExit(128 + signal.SIGTERM)
