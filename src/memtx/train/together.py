"""Work that all processes of a run do, where one that fails fails all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from memtx.train.parallel import Parallelism

# Long enough for one process to write its share while the others wait.
_PATIENCE = timedelta(minutes=30)


@final
class Together:
    """The processes of a run, with a group of their own that a background thread may use.

    Every process makes it, at the same place of the program.

    Args:
        parallelism: the processes.

    Source: what `torch.distributed.checkpoint` does with its steps, for steps of our own.

    Example:
        >>> import torch
        >>> from memtx.train.parallel import SingleProcess
        >>> Together(parallelism=SingleProcess(device=torch.device("cpu"))).all_do(lambda: 3)
        [3]
    """

    def __init__(self, *, parallelism: Parallelism) -> None:
        self.parallelism = parallelism
        self.group: dist.ProcessGroup | None = None
        if parallelism.world_size > 1:
            # Over gloo: it lets go at once when a process dies, and no GPU waits for it.
            self.group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def all_do(self, work: Callable[[], Any]) -> list[Any]:
        """Do something in every process, and give what each of them found, by rank.

        Args:
            work: gives something small.

        Raises:
            OSError: in every process, if one of them failed; its message says what.
        """
        found: tuple[Any, str | None]
        caught: Exception | None = None
        try:
            found = (work(), None)
        except Exception as error:  # told to all, or they would wait for ever
            caught, found = error, (None, f"{type(error).__name__}: {error}")
        answers: list[tuple[Any, str | None]] = [found]
        if self.group is not None:
            answers = [found] * self.parallelism.world_size
            dist.all_gather_object(answers, found, group=self.group)
        for rank, (_, trouble) in enumerate(answers):
            if trouble is not None:
                raise OSError(f"process {rank}: {trouble}") from caught
        return [each for each, _ in answers]

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Do something in the first process, and give in every one what it found.

        Args:
            work: gives something small.

        Raises:
            OSError: in every process, if it failed.
        """
        return self.all_do(work if self.parallelism.rank == 0 else _nothing)[0]


def _nothing() -> None:
    """Wait for the first process."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Give an error of torch.distributed.checkpoint the form of the others.

    Its own is no `Exception`, and would pass by all that is prepared for one.

    Raises:
        OSError: instead of it, with the process and what went wrong there.
    """
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {type(cause).__name__}: {cause}") from error
