"""Initialisers fill in place what they say, and are values."""

import pytest
import torch

from memtx import Normal, Zeros
from memtx.interfaces import Initializer


@pytest.mark.parametrize("std", [0.02, 1.5])
def test_normal_has_its_spread(std):
    weight = torch.full((200, 200), 7.0)
    Normal(std=std)(weight)
    assert abs(weight.mean()) < 0.02 * std
    assert abs(weight.std() - std) < 0.02 * std


def test_zeros():
    weight = torch.ones(3)
    Zeros()(weight)
    assert weight.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("init", [Normal(std=0.5), Zeros()])
def test_parameter_is_filled_without_a_gradient(init):
    weight = torch.nn.Parameter(torch.ones(3))
    init(weight)
    assert weight.grad_fn is None
    assert weight.requires_grad
    assert not torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize(
    ("init", "text"), [(Normal(std=0.5), "Normal(std=0.5)"), (Zeros(), "Zeros()")]
)
def test_is_a_value(init, text):
    assert repr(init) == text
    assert eval(text) == init
    assert isinstance(init, Initializer)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_std_that_is_refused(std):
    with pytest.raises(
        ValueError, match=rf"^Normal: std must be positive, got std={std}; use Zeros\(\) for"
    ):
        Normal(std=std)
