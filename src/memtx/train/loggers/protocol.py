"""What a logger is: where the numbers of a run go."""

from typing import Protocol, runtime_checkable

from memtx.checks import refusal

Record = dict[str, float]


@runtime_checkable
class Logger(Protocol):
    """Told where a run begins, handed a record after each step, and told when the run ends.

    Only the first process has loggers that write.
    """

    def begin(self, step: int) -> None:
        """Open for a run of which `step` steps are done: 0 when fresh, more when it is resumed.

        What was logged of later steps, before the run was killed, is replaced and not doubled.
        """

    def log(self, record: Record) -> None:
        """Take one record: `step` and named numbers."""

    def close(self) -> None:
        """Release what is open; the logger may begin another run."""


def not_begun(*, owner: object, record: Record) -> ValueError:
    """Give the error of a logger that is handed a record outside of a run.

    Args:
        owner: the logger.
        record: what it was handed.
    """
    return ValueError(
        refusal(
            owner=owner,
            rule="a record needs a run that has begun and was not closed",
            got={"step": record.get("step")},
            remedy="call begin(step=0) first; Trainer.run does",
        )
    )
