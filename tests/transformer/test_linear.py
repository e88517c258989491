"""Linear maps: values against torch's own, starts, and sizes that are refused."""

import re

import pytest
import torch
import torch.nn.functional as F

from memtx import Linear, LowRankLinear, Normal, Zeros
from tests.parts import random_like

SIZES = {"in_features": 6, "out_features": 4}


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_torch_linear(bias):
    part, x = Linear(**SIZES, bias=bias, init=Normal(std=0.3)), torch.randn(2, 3, 6)
    other = torch.nn.Linear(6, 4, bias=bias)
    random_like(part)
    other.load_state_dict({"weight": part.weight} | ({"bias": part.shift} if bias else {}))
    torch.testing.assert_close(part(x), other(x))
    assert len(list(part.parameters())) == (2 if bias else 1)


def test_linear_starts_as_said():
    part = Linear(**SIZES, bias=True, init=Normal(std=100.0))
    assert part.weight.std() > 50.0
    assert part.shift.tolist() == [0.0] * 4
    assert Linear(**SIZES, bias=False, init=Zeros()).weight.abs().sum() == 0.0


def test_low_rank_is_the_product_of_its_factors():
    part, x = LowRankLinear(**SIZES, rank=2, init=Normal(std=0.3)), torch.randn(5, 6)
    torch.testing.assert_close(part(x), F.linear(x, part.up @ part.down))
    assert torch.linalg.matrix_rank(part(torch.eye(6))) == 2
    assert sum(p.numel() for p in part.parameters()) == 2 * (6 + 4)


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["in_features", "out_features", "rank"])
def test_sizes_that_are_refused(name, value):
    text = f"LowRankLinear: {name} must be an integer of at least 1, got {name}={value!r};"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        LowRankLinear(**(SIZES | {"rank": 2, "init": Zeros(), name: value}))
    if name != "rank":
        with pytest.raises(ValueError, match=f"^{re.escape(text.removeprefix('LowRank'))}"):
            Linear(**(SIZES | {"bias": True, "init": Zeros(), name: value}))


def test_rank_too_big_is_refused():
    text = (
        "LowRankLinear: rank must not exceed the smaller of in_features and out_features, "
        "got rank=5, in_features=6, out_features=4; use Linear for a map of full rank."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        LowRankLinear(**SIZES, rank=5, init=Zeros())
    assert LowRankLinear(**SIZES, rank=4, init=Zeros()).rank == 4
