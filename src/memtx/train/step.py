"""One step of training: batches, gradient, update, record."""

import math
import time
from contextlib import nullcontext
from typing import final

import torch
from torch import Tensor

from memtx.data.protocols import Batch
from memtx.train.identity import breakdown, identities
from memtx.train.loggers import Record
from memtx.train.precision import Precision
from memtx.train.run import Guard, Run
from memtx.train.schedules import Schedule
from memtx.train.signals import ELSEWHERE


@final
class Stepper:
    """Takes the steps of a run, one by one.

    Args:
        run: the run; each step moves it on.
        schedule: factor on every learning rate.
        precision: arithmetic of the forward.
        accumulation: batches per process and step.
        clip_norm: largest norm of the whole gradient.

    Source: nanochat's and torchtitan's loops, with token-exact means over accumulation. A step
    makes the host wait for the device once; the next batches are fetched while the device works.

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
        self._guards = [callback for callback in run.callbacks if isinstance(callback, Guard)]

    @property
    def is_ahead(self) -> bool:
        """Whether the streams stand beyond the steps that were taken."""
        return bool(self._ahead)

    def take(self, *, asked: str | None, holds: bool) -> Record:
        """Take the next step and give its record.

        Args:
            asked: by what this process was asked to stop, or None; every process stops if one was.
            holds: whether no batch may be fetched ahead, as the run is saved or measured next.

        Raises:
            FloatingPointError: if loss or gradient are not finite, or a guard objects; the
                parameters are those of the step before.
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
        if stops and run.stop is None:
            run.stop = asked or ELSEWHERE
        means, own = self._gradient(batches, counts=counts)
        norm = self._clip()
        if not holds and run.stop is None:
            self._fetch()
        record = self._check(batches, means=means, norm=norm, own=own, factor=factor)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        seconds = time.perf_counter() - started
        return record | {
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds,
            "data_seconds": data_seconds,
        }

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
        counts = torch.stack([self.run.objective.counts(batch) for batch in batches]).sum(0)
        tokens = sum(int(b["attention_mask"].sum()) for batch in batches for b in batch.values())
        extra = torch.tensor([tokens, int(asked is not None)], dtype=counts.dtype)
        total = self.run.parallelism.all_sum(torch.cat([counts, extra]))
        return total[:-2], float(total[-2]), bool(total[-1])

    def _gradient(
        self, batches: list[dict[str, Batch]], *, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the global batch in the parameters.

        Gives each term's mean over it, and the share of each batch of this process in them.
        """
        run, place = self.run, self.run.parallelism
        weights = torch.tensor([*run.objective.weights.values()])
        weights, counts = (to(each, place.device) for each in (weights, counts))
        own = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            moved = {name: move(each, place.device) for name, each in batch.items()}
            with nullcontext() if last else place.no_sync(run.wrapped):
                with self.precision.context(place.device):
                    shares = run.wrapped(moved) / counts.clamp(min=1)
                # The wrapper averages over processes; the shares are to be added up.
                loss = (weights * shares).sum() * place.world_size
                run.scaler.scale(loss).backward()
            own.append(shares.detach())
        return place.all_sum(torch.stack(own).sum(0)), torch.stack(own)

    def _clip(self) -> Tensor:
        run = self.run
        run.scaler.unscale_(run.optimizer)
        trained = [p for group in run.optimizer.param_groups for p in group["params"]]
        return run.parallelism.clip(trained, self.clip_norm)

    def _check(
        self,
        batches: list[dict[str, Batch]],
        *,
        means: Tensor,
        norm: Tensor,
        own: Tensor,
        factor: float,
    ) -> Record:
        """Wait for the device, once, and give the record if the step may change the parameters."""
        run, names = self.run, list(self.run.objective.weights)
        numbers = torch.cat([means, norm.reshape(1).to(means.dtype), own.flatten()]).tolist()
        values = dict(zip(names, numbers[: len(names)], strict=True))
        loss = sum(weight * values[name] for name, weight in run.objective.weights.items())
        record: Record = {"step": run.step + 1, "loss": loss} | values
        record |= {"gradient_norm": numbers[len(names)], "learning_rate_factor": factor}
        record |= {f"learning_rate/{g.name}": g.learning_rate * factor for g in run.groups}
        finite = math.isfinite(record["gradient_norm"])
        if run.scaler.is_enabled():
            # Half precision overflows now and then: the scaler leaves the step out and scales less.
            scale = run.scaler.get_scale()
            record |= {"loss_scale": scale, "step_left_out": float(not finite)}
            finite = finite or scale > 1.0
        trouble = None
        if not (math.isfinite(loss) and finite):
            trouble = "loss and gradient must stay finite"
        for guard in self._guards:
            trouble = trouble or guard.trouble(record)
        if trouble is not None:
            each = torch.tensor(numbers[len(names) + 1 :]).view(own.shape).sum(1).tolist()
            found = identities(batches, shares=each, run=run)
            raise FloatingPointError(breakdown(trouble, record=record, found=found))
        return record


def to(tensor: Tensor, device: torch.device) -> Tensor:
    """Give a tensor on a device without waiting for it.

    Args:
        tensor: on the CPU.
        device: where it is wanted.
    """
    held = tensor.pin_memory() if device.type == "cuda" else tensor
    return held.to(device, non_blocking=True)


def move(batch: Batch, device: torch.device) -> Batch:
    """Give a batch on a device without waiting for it.

    Args:
        batch: on the CPU.
        device: where it is wanted.
    """
    return {key: to(value, device) for key, value in batch.items()}
