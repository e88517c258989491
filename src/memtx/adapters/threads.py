"""What belongs to one forward, each thread's apart: a model may answer several threads at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final


@final
class Here:
    """Named values that every thread has for itself; a copy begins without any.

    Compilers follow it: what was found is looked at again before a compiled form is used.

    Args:
        None: it takes no arguments.

    Source: memtx's own; torch keeps its modes, such as `no_grad`, for each thread alike.

    Example:
        >>> here = Here()
        >>> here.put("on", False)
        >>> here.get("on", True), Here().get("on", True)
        (False, True)
    """

    def __init__(self) -> None:
        self.values = threading.local()

    def __reduce__(self) -> tuple[type["Here"], tuple[()]]:
        """Copy nothing: what belongs to a thread stays with it."""
        return (Here, ())

    def get(self, name: str, default: Any) -> Any:
        """Give this thread's value.

        Args:
            name: of the value.
            default: what it is where the thread has none.
        """
        return getattr(self.values, name, default)

    def put(self, name: str, value: object) -> None:
        """Keep a value for this thread.

        Args:
            name: of the value.
            value: the value.
        """
        setattr(self.values, name, value)

    @contextmanager
    def keeping(self, name: str, value: object, *, default: object) -> Iterator[None]:
        """Keep a value for this thread inside a `with` block.

        Args:
            name: of the value.
            value: the value.
            default: what it is where the thread has none.
        """
        before = self.get(name, default)
        self.put(name, value)
        try:
            yield
        finally:
            self.put(name, before)
