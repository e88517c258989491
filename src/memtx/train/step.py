"""One step of training: batches, gradient, update, record."""

import time
import warnings
from contextlib import nullcontext
from typing import final

import torch
from torch import Tensor

from memtx.checks import refusal
from memtx.data.protocols import Batch
from memtx.train.loggers import Record
from memtx.train.moving import count, move, to
from memtx.train.precision import Precision
from memtx.train.run import Run
from memtx.train.schedules import Schedule
from memtx.train.signals import ELSEWHERE
from memtx.train.taken import Taken
from memtx.train.updates import updates_of


@final
class Stepper:
    """Takes the steps of a run, one by one.

    Args:
        run: the run; each step moves it on.
        schedule: factor on every learning rate.
        precision: arithmetic of the forward.
        accumulation: batches per process and step.
        clip_norm: largest norm of the whole gradient.

    Source: nanochat's and torchtitan's loops, with token-exact means over accumulation. The next
    batches are fetched while the device works, and where nobody has to know a step's numbers at
    once, they are read when the step after it is on its way: so the device never waits.

    Example:
        >>> Stepper.__name__  # made by `Trainer.run`
        'Stepper'
    """

    def __init__(
        self,
        *,
        run: Run,
        schedule: Schedule,
        precision: Precision,
        accumulation: int,
        clip_norm: float,
    ) -> None:
        self.run = run
        self.schedule = schedule
        self.precision = precision
        self.accumulation = accumulation
        self.clip_norm = clip_norm
        self._ahead: list[dict[str, Batch]] = []
        self._data_seconds = 0.0
        self._updates = updates_of(run)
        self._trained = [p for group in run.optimizer.param_groups for p in group["params"]]
        self._weights: tuple[list[float], Tensor] | None = None
        self._pending: list[Taken] = []
        self._warned = run.parallelism.rank > 0

    @property
    def is_ahead(self) -> bool:
        """Whether the streams stand beyond the steps that were taken."""
        return bool(self._ahead)

    def take(self, *, asked: str | None, holds: bool, waits: bool) -> list[Record]:
        """Take the next step, and give the records that are there: none, its own, or two.

        Args:
            asked: by what this process was asked to stop, or None; every process stops if one was.
            holds: whether no batch may be fetched ahead, as the run is saved or measured next.
            waits: whether the record of this step must be there.

        Raises:
            FloatingPointError: if loss or gradient are not finite, or a guard objects; the
                parameters are those of the step before the one that is named.
        """
        started, run = time.perf_counter(), self.run
        factor = self.schedule.factor(run.step + 1)
        for group, held in zip(run.groups, run.optimizer.param_groups, strict=True):
            held["lr"] = group.learning_rate * factor
        if not self._ahead:
            self._fetch()
        batches, self._ahead = self._ahead, []
        data_seconds, self._data_seconds = self._data_seconds, 0.0
        counts, tokens, stops = self._sums(batches, asked=asked)
        self._warn_of_nothing(counts)
        if stops and run.stop is None:
            run.stop = asked or ELSEWHERE
        means, own = self._gradient(batches, counts=counts)
        run.scaler.unscale_(run.optimizer)
        norm = run.parallelism.clip(self._trained, self.clip_norm)
        if not holds and run.stop is None:
            self._fetch()
        taken = Taken(run=run, batches=batches, factor=factor, means=means, norm=norm, own=own)
        self._updates.update(taken)
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        found = self._settle()
        self._pending = [taken]
        if waits or taken.is_known or run.stop is not None:
            found += self._settle()
        seconds = time.perf_counter() - started
        taken.times |= {
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds,
            "data_seconds": data_seconds,
        }
        return [each.record() for each in found]

    def rest(self) -> list[Record]:
        """Give what was not given yet, of a run that something else ended."""
        pending, self._pending = self._pending, []
        return [each.record() for each in pending]

    def _settle(self) -> list[Taken]:
        """Wait for the numbers that are on their way, and look at them."""
        pending, self._pending = self._pending, []
        for each in pending:
            each.check([])
        return pending

    def _fetch(self) -> None:
        """Take the batches of a step from the streams, and leave them on the CPU."""
        started, place = time.perf_counter(), self.run.parallelism
        self._ahead = [
            {
                name: stream.next_batch(rank=place.rank, world_size=place.world_size)
                for name, stream in self.run.streams.items()
            }
            for _ in range(self.accumulation)
        ]
        self._data_seconds += time.perf_counter() - started

    def _sums(
        self, batches: list[dict[str, Batch]], *, asked: str | None
    ) -> tuple[Tensor, float, bool]:
        """Sum counts, tokens and who was asked to stop over processes, without the device."""
        counts = torch.stack([self.run.objective.counts(batch) for batch in batches]).sum(0).cpu()
        tokens = sum(count(b["attention_mask"]) for batch in batches for b in batch.values())
        extra = torch.tensor([tokens, int(asked is not None)], dtype=counts.dtype)
        total = self.run.parallelism.all_sum(torch.cat([counts, extra]))
        return total[:-2], float(total[-2]), bool(total[-1])

    def _warn_of_nothing(self, counts: Tensor) -> None:
        """Say once that a term has nothing to learn in a step: its loss is then 0."""
        if self._warned or bool(counts.all()):
            return
        self._warned = True
        names = [n for n, c in zip(self.run.objective.weights, counts, strict=True) if not c]
        message = refusal(
            owner="Trainer",
            rule="a step should have something for each term, such as tokens with a label",
            got={"step": self.run.step + 1, "nothing for": names},
            remedy="look at the labels of the stream, or take more rows a step",
        )
        warnings.warn(message, UserWarning, stacklevel=4)

    def _gradient(
        self, batches: list[dict[str, Batch]], *, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the global batch in the parameters.

        Gives each term's mean over it, and the share of each batch of this process in them.
        """
        run, place = self.run, self.run.parallelism
        weights, counts = self._factors(), to(counts.clamp(min=1), place.device)
        own = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            moved = {name: move(each, place.device) for name, each in batch.items()}
            with nullcontext() if last else place.no_sync(run.wrapped):
                with self.precision.context(place.device):
                    shares = run.wrapped(moved) / counts
                run.scaler.scale((weights * shares).sum()).backward()
            own.append(shares.detach())
        if len(own) == 1:
            return place.all_sum(own[0]), own[0][None]
        parts = torch.stack(own)
        return place.all_sum(parts.sum(0)), parts

    def _factors(self) -> Tensor:
        """Give the terms' weights, times the number of processes, where the model is.

        The wrapper averages over processes; the shares are to be added up.
        """
        place = self.run.parallelism
        values = [weight * place.world_size for weight in self.run.objective.weights.values()]
        # Moved once, unless somebody changes them.
        if self._weights is None or self._weights[0] != values:
            self._weights = (values, to(torch.tensor(values), place.device))
        return self._weights[1]
