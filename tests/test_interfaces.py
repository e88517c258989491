"""Interfaces tell parts apart: each is refused where another is needed."""

import pytest

from memtx import Normal, RMSNorm
from memtx.interfaces import Branch, Initializer, MemoryBank, Projection, Sublayer
from tests.parts import bank_of, linear, mlp, think

PARTS = {
    "projection": linear(4, 4),
    "bank": bank_of(3, 4),
    "norm": RMSNorm(dim=4, eps=1e-5),
    "mlp": mlp(4),
    "block": think(4),
    "number": 4,
}

# The parts that each interface takes. A bank has a width too: what it lacks is an input.
TAKES = {
    Projection: {"projection"},
    MemoryBank: {"bank"},
    Branch: {"block"},
    Sublayer: {"norm", "mlp", "block", "bank"},
}


@pytest.mark.parametrize("interface", TAKES)
def test_takes_only_its_own(interface):
    assert {name for name, p in PARTS.items() if isinstance(p, interface)} == TAKES[interface]


def test_initializer_is_anything_callable():
    assert isinstance(Normal(std=1.0), Initializer)
    assert not isinstance(4, Initializer)
