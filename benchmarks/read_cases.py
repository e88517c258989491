"""Sizes of the reads that `routed_read` times, and the axes along which they grow."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one case; `length` tokens to a row, `chapters` in the memory, `chosen` read."""

    name: str
    batch: int
    length: int
    chapters: int
    tokens: int
    chosen: int
    shared: int
    heads: int
    width: int
    by_token: bool
    dtype: torch.dtype


def gpu_cases() -> list[Case]:
    """The reads of the 371M mixture-of-chapters model, and finer and coarser choices by token."""
    sizes = [(4096, 64, 4), (4096, 64, 8), (512, 512, 2), (128, 512, 4)]
    return [
        Case(
            name="by sequence 16 x 1024, 65 of 4097 x 64",
            batch=16,
            length=1024,
            chapters=4097,
            tokens=64,
            chosen=65,
            shared=1,
            heads=12,
            width=64,
            by_token=False,
            dtype=torch.bfloat16,
        ),
        *(
            Case(
                name=f"by token 16384, {chosen} of {chapters} x {tokens}",
                batch=1,
                length=16_384,
                chapters=chapters,
                tokens=tokens,
                chosen=chosen,
                shared=0,
                heads=12,
                width=64,
                by_token=True,
                dtype=torch.bfloat16,
            )
            for chapters, tokens, chosen in sizes
        ),
    ]


def cpu_cases() -> list[Case]:
    """One sequence that reads 1,024 of 65,536 memory tokens."""
    return [
        Case(
            name="by sequence 1 x 256, 16 of 1024 x 64",
            batch=1,
            length=256,
            chapters=1024,
            tokens=64,
            chosen=16,
            shared=0,
            heads=4,
            width=64,
            by_token=False,
            dtype=torch.float32,
        )
    ]


def tiny_cases() -> list[Case]:
    """Both kinds at sizes that run anywhere and measure nothing."""
    return [
        Case(
            name=f"tiny by {'token' if each else 'sequence'}",
            batch=2,
            length=64,
            chapters=9,
            tokens=8,
            chosen=3,
            shared=0 if each else 1,
            heads=2,
            width=8,
            by_token=each,
            dtype=torch.float32,
        )
        for each in (False, True)
    ]


AXES = ("top-k", "length", "bank")
# How far each axis goes on a GPU, on a CPU, and in a run that measures nothing.
TOP_K = {"gpu": [1, 2, 4, 8, 16, 32, 64], "cpu": [1, 2, 4, 8, 16, 32, 64], "tiny": [1, 4]}
LENGTH = {
    "gpu": [256, 512, 1_024, 2_048, 4_096, 8_192, 16_384],
    "cpu": [64, 256, 1_024, 2_048],
    "tiny": [16, 32],
}
BANK = {
    "gpu": [4_096, 16_384, 65_536, 262_144, 1_048_576],
    "cpu": [4_096, 16_384, 65_536, 131_072],
    "tiny": [64, 128],
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A read on an axis: where it stands there, and whether dense reading differs from before."""

    axis: str
    at: int
    case: Case
    dense: bool


def sweep(where: str) -> Iterator[Point]:
    """Give the points of the three axes: chapters read, length, and memory tokens of the bank.

    Dense reading knows no chapters, so that on the first axis it is one point.
    """
    tiny, gpu = where == "tiny", where == "gpu"
    plain = Case(
        name="",
        batch=16 if gpu else 1,
        length=1_024 if gpu else 256,
        chapters=4_096 if gpu else 1_024,
        tokens=64,
        chosen=16,
        shared=0,
        heads=12 if gpu else 4,
        width=64,
        by_token=False,
        dtype=torch.bfloat16 if gpu else torch.float32,
    )
    if tiny:
        plain = replace(plain, length=16, chapters=16, tokens=4, chosen=4, heads=2, width=8)
    rows = f"{plain.batch} x {plain.length}"
    for at in TOP_K[where]:
        name = f"by sequence {rows}, of {plain.chapters} x {plain.tokens}"
        case = replace(plain, name=name, chosen=at)
        yield Point(axis="top-k", at=at, case=case, dense=at == TOP_K[where][0])
    for at in LENGTH[where]:
        batch, chapters = 4 if gpu else 1, plain.chapters // 4
        name = f"by sequence, batch {batch}, {plain.chosen} of {chapters} x {plain.tokens}"
        case = replace(plain, name=name, batch=batch, length=at, chapters=chapters)
        yield Point(axis="length", at=at, case=case, dense=True)
    for at in BANK[where]:
        name = f"by sequence {rows}, {plain.chosen} chapters of {plain.tokens}"
        case = replace(plain, name=name, chapters=at // plain.tokens)
        yield Point(axis="bank", at=at, case=case, dense=True)
