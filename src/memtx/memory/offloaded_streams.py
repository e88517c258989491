"""What may be copied while what is read: on a GPU, on two streams."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Order(Protocol):
    """The order of reads and copies on a device."""

    def keeps(self, tensors: list[Tensor]) -> None:
        """Keep the memory of tensors until no copy is under way."""

    def last_read(self) -> Any:
        """Give what is done when all reads so far are done."""

    def note_read(self) -> None:
        """A read was begun on the current stream."""

    def wait_for(self, events: list[Any]) -> None:
        """Let the current stream go on when all of these are done."""

    def aside(self, after: Any) -> AbstractContextManager[None]:
        """Work beside the current stream, once something is done."""

    def mark(self) -> Any:
        """Give what is done when the copies so far are done; None if they are."""


class _InOrder:
    """On a CPU a copy is done when it returns, and so is a read."""

    def keeps(self, tensors: list[Tensor]) -> None:
        """Nothing."""

    def last_read(self) -> None:
        """Nothing is under way."""

    def note_read(self) -> None:
        """Nothing."""

    def wait_for(self, events: list[Any]) -> None:
        """Nothing."""

    def aside(self, after: Any) -> AbstractContextManager[None]:
        """Here."""
        return nullcontext()

    def mark(self) -> None:
        """They are done."""


class _OnStreams:
    """On a GPU reads are in the order of the streams they are on, copies on a stream beside."""

    def __init__(self, *, device: torch.device) -> None:
        self.device = device
        self._beside = torch.cuda.Stream(device)
        self._last_read: Any = None

    def keeps(self, tensors: list[Tensor]) -> None:
        """Tell the allocator that they are used on the stream beside."""
        for tensor in tensors:
            tensor.record_stream(self._beside)
        # What the memory was used for before is done with on this stream alone: all wait for it.
        self.note_read()
        self._beside.wait_event(self._last_read)

    def last_read(self) -> Any:
        """Give the event of the last read: each waits for the one before, on whatever stream."""
        return self._last_read

    def note_read(self) -> None:
        """Record an event."""
        self._last_read = torch.cuda.current_stream(self.device).record_event()

    def wait_for(self, events: list[Any]) -> None:
        """Wait on the GPU; the host goes on."""
        for event in {id(each): each for each in events if each is not None}.values():
            torch.cuda.current_stream(self.device).wait_event(event)

    @contextmanager
    def aside(self, after: Any) -> Iterator[None]:
        """Go over to the stream beside."""
        with torch.cuda.stream(self._beside):
            if after is not None:
                self._beside.wait_event(after)
            try:
                yield
            except BaseException:
                self._beside.synchronize()  # the places are given away
                raise

    def mark(self) -> Any:
        """Record an event on the stream beside."""
        return self._beside.record_event()


def order_of(device: torch.device) -> Order:
    """Give the order of a device.

    Args:
        device: where chapters are kept.
    """
    return _OnStreams(device=device) if device.type == "cuda" else _InOrder()
