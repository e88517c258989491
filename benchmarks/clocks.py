"""Clocks that a training loop ticks after each step, on the GPU or on the host."""

import time

import torch

from memtx.train.loggers import Record


class CudaClock:
    """Ticks by CUDA events, so that the loop is never made to wait for its clock.

    A step lasts from one event to the next: waiting for the host counts, as it does for a user.
    """

    def __init__(self) -> None:
        self.events: list[torch.cuda.Event] = []

    def begin(self, step: int) -> None:
        """Nothing is opened; ticks of a run before are kept."""

    def log(self, record: Record) -> None:
        """Tick; the face of a `Logger`, so that memtx's own `Trainer` can be timed as it is."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.events.append(event)

    @property
    def count(self) -> int:
        """Ticks so far."""
        return len(self.events)

    def close(self) -> None:
        """Nothing is open."""

    def milliseconds(self) -> list[float]:
        """Give the time from each tick to the next."""
        torch.cuda.synchronize()
        pairs = zip(self.events, self.events[1:], strict=False)
        return [first.elapsed_time(second) for first, second in pairs]


class HostClock:
    """Ticks by the host's clock, for a CPU."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def begin(self, step: int) -> None:
        """Nothing is opened; ticks of a run before are kept."""

    def log(self, record: Record) -> None:
        """Tick; the face of a `Logger`."""
        self.seconds.append(time.perf_counter())

    @property
    def count(self) -> int:
        """Ticks so far."""
        return len(self.seconds)

    def close(self) -> None:
        """Nothing is open."""

    def milliseconds(self) -> list[float]:
        """Give the time from each tick to the next."""
        pairs = zip(self.seconds, self.seconds[1:], strict=False)
        return [1000.0 * (second - first) for first, second in pairs]


class ProcessorClock:
    """Ticks by the time a processor worked for this process, for a host that others use as well.

    With one thread that is the time that passes where nobody else works.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def begin(self, step: int) -> None:
        """Nothing is opened; ticks of a run before are kept."""

    def log(self, record: Record) -> None:
        """Tick; the face of a `Logger`."""
        self.seconds.append(time.process_time())

    @property
    def count(self) -> int:
        """Ticks so far."""
        return len(self.seconds)

    def close(self) -> None:
        """Nothing is open."""

    def milliseconds(self) -> list[float]:
        """Give the time from each tick to the next."""
        pairs = zip(self.seconds, self.seconds[1:], strict=False)
        return [1000.0 * (second - first) for first, second in pairs]


Clock = CudaClock | HostClock | ProcessorClock


def clock_of(device: torch.device) -> Clock:
    """Give the clock of a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def forget_peak(device: torch.device) -> None:
    """Count the peak of the device's memory from now on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Give the peak of what torch had allocated, or None on a CPU, which does not count it."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
