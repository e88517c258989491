"""One process that fails ends all of them, on every node, with the first error told by each."""

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import final

import torch.distributed as dist

from memtx.checks import require

# A process looks around every so many seconds; it takes another for dead that gave no sign for
# so long; and it ends itself so long behind another's failure, by which its own error is told.
EVERY, SILENT, GRACE = 2.0, 30.0, 10.0
_FAILED, _THROUGH = "failed", "through"
_MEETINGS = itertools.count()


@final
class Watch:
    """Tells the other processes of a failure here, and ends this one behind a failure there.

    A process that waits for a dead one in a collective of NCCL waits until a timeout that must be
    long, since a slow step is no failure. So each gives signs of life in the store by which they
    met, and looks for those of the next one, in a thread of its own.

    Args:
        store: shared by all processes, by a connection of its own.
        rank: of this process.
        world_size: number of processes.
        every: seconds between looks.
        silent: seconds without a sign after which a process is taken for dead.
        grace: seconds in which this process may still end by itself.
        end: ends this process, and is told why.

    Raises:
        ValueError: if `silent` is not longer than `every`.

    Source: the heartbeats of torch's elastic agents, which know of their own node alone.

    Example:
        >>> import torch.distributed as dist
        >>> watch = Watch(store=dist.HashStore(), rank=0, world_size=1, every=0.01, silent=1.0,
        ...               grace=0.0, end=print)
        >>> watch.tell(RuntimeError("no room"))
        >>> watch.look()
        'process 0 failed first: RuntimeError: no room'
    """

    def __init__(
        self,
        *,
        store: dist.Store,  # type: ignore[name-defined]
        rank: int,
        world_size: int,
        every: float,
        silent: float,
        grace: float,
        end: Callable[[str], None],
    ) -> None:
        require(
            ok=silent > every > 0.0,
            owner=self,
            rule="silent must be longer than every, which is above 0",
            got={"every": every, "silent": silent},
            remedy="give a process time for several signs",
        )
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.every = every
        self.silent = silent
        self.grace = grace
        self.end = end
        self._signs = 0
        self._sign, self._heard = b"", time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memtx-watch", daemon=True)

    def start(self) -> None:
        """Begin to look around."""
        self._thread.start()

    def stop(self) -> None:
        """Wait until every process is through, and look no more."""
        # Until then the store must stay, and a failure of another still ends this one.
        with suppress(RuntimeError):  # the process that kept the store was the last but this one
            self.store.add(_THROUGH, 1)
            while self.store.add(_THROUGH, 0) < self.world_size:
                time.sleep(self.every / 10.0)
        self._done.set()
        self._thread.join()

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process fails; the first to tell is the one they name.

        Args:
            error: what went wrong.
        """
        line = "".join(traceback.format_exception_only(error)).strip()
        self.store.compare_set(_FAILED, "", f"process {self.rank} failed first: {line}")

    def look(self) -> str | None:
        """Give a sign, and what ends this process, or None."""
        self._signs += 1
        self.store.set(f"sign/{self.rank}", str(self._signs))
        # Each looks after the next one and tells all: a look costs as much for any number of them.
        other = (self.rank + 1) % self.world_size
        key, now = f"sign/{other}", time.monotonic()
        sign = self.store.get(key) if self.store.check([key]) else b""
        if sign != self._sign:
            self._sign, self._heard = sign, now
        elif now - self._heard > self.silent:
            silence = f"process {other} gave no sign of life for {self.silent:.0f} seconds"
            self.store.compare_set(_FAILED, "", silence)
        return self.store.get(_FAILED).decode() if self.store.check([_FAILED]) else None

    def _run(self) -> None:
        while not self._done.wait(self.every):
            try:
                why = self.look()
            except RuntimeError as error:  # of torch: the store went down with its process
                why = f"the store of the processes cannot be reached: {error}".partition("\n")[0]
            if why is not None:
                if not self._done.wait(self.grace):
                    self.end(why)
                return


@contextmanager
def watched() -> Iterator[None]:
    """Watch the processes that `torchrun` started, for a block; every process must enter it."""
    # A program may meet several times, and be started again: each time its signs are new.
    store = dist.PrefixStore(  # type: ignore[attr-defined]
        f"memtx/watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_MEETINGS)}",
        dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=SILENT),
        ),
    )
    watch = Watch(
        store=store,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        every=EVERY,
        silent=SILENT,
        grace=GRACE,
        end=_end,
    )
    watch.start()
    try:
        yield
    except BaseException as error:
        # 143 is how a run ends that was asked to stop: nothing failed.
        if not (isinstance(error, SystemExit) and error.code in (0, None, 143)):
            _report(error, watch=watch)
        raise
    watch.stop()


def _report(error: BaseException, *, watch: Watch) -> None:
    """Tell the others, and `torchrun`, which shows the first error at the end of its own report."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    # The watch goes on: should this process hang on its way out, it is ended as the others are.
    try:
        watch.tell(error)
    except RuntimeError as trouble:
        error.add_note(f"The other processes could not be told: {trouble}")
    if isinstance(error, SystemExit):
        # A script's own line: where it comes from is no part of it.
        error.__suppress_context__ = True
    get_error_handler().record_exception(error)


def _end(why: str) -> None:
    sys.stderr.write(f"memtx: this process ends, as {why}\n")
    sys.stderr.flush()
    os._exit(1)
