"""A step that was taken, whose numbers may still be on their way from the device."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from memtx.data.protocols import Batch
from memtx.train.identity import breakdown, identities
from memtx.train.loggers import Record
from memtx.train.run import Guard, Run


@final
class Taken:
    """The numbers of a step, which come from the device in one go, and its batches.

    Args:
        run: the run before the step's update.
        batches: those of this process.
        factor: of the schedule.
        means: of the terms, `[components]`.
        norm: of the gradient before it was clipped.
        own: the share of each batch of this process, `[batches, components]`.

    Source: memtx's own.

    Example:
        >>> Taken.__name__  # made by `Stepper.take`
        'Taken'
    """

    def __init__(
        self,
        *,
        run: Run,
        batches: list[dict[str, Batch]],
        factor: float,
        means: Tensor,
        norm: Tensor,
        own: Tensor,
    ) -> None:
        self.run = run
        self.batches = batches
        self.factor = factor
        self.means = means
        self.norm = norm
        self.own = own
        self.times: Record = {}
        # What may change until the numbers are there.
        self._before = run.step
        self._weights = dict(run.objective.weights)
        numbers = torch.cat([means, norm.reshape(1).to(means.dtype), own.flatten()])
        self.decisive = numbers[: len(self._weights) + 1]
        self._sent = numbers.to("cpu", non_blocking=True)
        self._arrival: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._arrival = torch.cuda.current_stream(numbers.device).record_event()
        self._record: Record | None = None

    @property
    def is_known(self) -> bool:
        """Whether the numbers are there and were looked at."""
        return self._record is not None

    def check(self, guards: Sequence[Guard]) -> None:
        """Wait for the numbers, and look at them, if that was not done before.

        Args:
            guards: look at them as well.

        Raises:
            FloatingPointError: if loss or gradient are not finite, or a guard objects.
        """
        if self._record is not None:
            return
        numbers = self._read()
        record = self._named(numbers)
        finite, scaler = math.isfinite(record["gradient_norm"]), self.run.scaler
        if scaler.is_enabled():
            # Half precision overflows now and then: the scaler leaves the step out and scales less.
            scale = scaler.get_scale()
            record |= {"loss_scale": scale, "step_left_out": float(not finite)}
            finite = finite or scale > 1.0
        trouble = None
        if not (math.isfinite(record["loss"]) and finite):
            trouble = "loss and gradient must stay finite"
        for guard in guards:
            trouble = trouble or guard.trouble(record)
        if trouble is not None:
            shares = torch.tensor(numbers[len(self._weights) + 1 :]).view(self.own.shape)
            found = identities(
                self.batches,
                shares=shares.sum(1).tolist(),
                before=self._before,
                parallelism=self.run.parallelism,
            )
            raise FloatingPointError(breakdown(trouble, record=record, found=found))
        self._record = record

    def record(self) -> Record:
        """Wait for the numbers, and give all that is known of the step."""
        known = self._named(self._read()) if self._record is None else self._record
        return known | self.times

    def _read(self) -> list[float]:
        if self._arrival is not None:
            self._arrival.synchronize()
        numbers: list[float] = self._sent.tolist()
        return numbers

    def _named(self, numbers: list[float]) -> Record:
        names = list(self._weights)
        values = dict(zip(names, numbers[: len(names)], strict=True))
        loss = sum(weight * values[name] for name, weight in self._weights.items())
        record: Record = {"step": self._before + 1, "loss": loss} | values
        record |= {"gradient_norm": numbers[len(names)], "learning_rate_factor": self.factor}
        rates = {f"learning_rate/{g.name}": g.learning_rate * self.factor for g in self.run.groups}
        return record | rates
