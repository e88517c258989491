"""Naming a batch, so that one that broke a run can be found again."""

import hashlib
import math
from dataclasses import dataclass
from typing import final

import torch

from memtx.checks import refusal
from memtx.data.protocols import Batch
from memtx.train.loggers import Record
from memtx.train.parallel import Parallelism

_DIGITS = 12


def digest(batch: Batch) -> str:
    """Give the first 12 digits of the SHA-1 of a batch's `input_ids`, as the run's errors do.

    Args:
        batch: with `input_ids`.

    Example:
        >>> import torch
        >>> digest({"input_ids": torch.tensor([[1, 2, 3]])})
        'e2d1839ed170'
    """
    ids = batch["input_ids"].detach().cpu().long().contiguous()
    return hashlib.sha1(ids.numpy().tobytes(), usedforsecurity=False).hexdigest()[:_DIGITS]


@final
@dataclass(frozen=True, kw_only=True)
class Identity:
    """A batch of a run: who had it, and which it is.

    Args:
        stream: name of the stream.
        number: of the batch in it, counted over all processes from 0 where the run started.
        process: rank of the process that had it.
        sha1: `digest` of the batch.
        share: of the step's loss, that of all streams together.

    Source: memtx's own.

    Example:
        >>> Identity(stream="text", number=6, process=0, sha1="e2d1839ed170", share=0.5).number
        6
    """

    stream: str
    number: int
    process: int
    sha1: str
    share: float


def identities(
    batches: list[dict[str, Batch]],
    *,
    shares: list[float],
    before: int,
    parallelism: Parallelism,
) -> list[Identity]:
    """Name the batches of a step, of all processes; each has to call this.

    Args:
        batches: those of this process.
        shares: what each contributed to the step's loss.
        before: how many steps were done before it.
        parallelism: the processes.
    """
    place, names = parallelism, sorted(batches[0])
    rows = [[int(digest(batch[name]), 16) for name in names] for batch in batches]
    digests = torch.zeros(place.world_size, len(batches), len(names), dtype=torch.int64)
    digests[place.rank] = torch.tensor(rows)
    parts = torch.zeros(place.world_size, len(batches), dtype=torch.float64)
    parts[place.rank] = torch.tensor(shares, dtype=torch.float64)
    digests, parts = place.all_sum(digests), place.all_sum(parts)
    first = before * len(batches)
    return [
        Identity(
            stream=name,
            number=(first + part) * place.world_size + rank,
            process=rank,
            sha1=f"{int(digests[rank, part, at]):0{_DIGITS}x}",
            share=float(parts[rank, part]),
        )
        for part in range(len(batches))
        for rank in range(place.world_size)
        for at, name in enumerate(names)
    ]


def breakdown(trouble: str, *, record: Record, found: list[Identity]) -> str:
    """Write why a run stops before an update, and at which batches.

    Args:
        trouble: what must hold and does not.
        record: the step's numbers.
        found: its batches; those whose own share is not finite are named, or else all.
    """
    broken = [each for each in found if not math.isfinite(each.share)] or found
    named = [
        f"{each.stream} {each.number} (process {each.process}, sha1 {each.sha1}, "
        f"share {each.share:.4g})"
        for each in broken[:8]
    ]
    named += [f"and {len(broken) - 8} more"] if len(broken) > 8 else []
    return refusal(
        owner="Trainer",
        rule=trouble,
        got={**record, "batches": named},
        remedy="look at these batches, or lower the learning rate. The parameters are those of the "
        "step before, and what was saved is kept",
    )
