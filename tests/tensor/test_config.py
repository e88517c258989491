"""Each value of a tensor memory is checked."""

import pytest

from memtx import TensorMemoryConfig
from tests.tensor.parts import VALUES, config


def test_values_are_kept():
    assert {name: getattr(config({}), name) for name in VALUES} == VALUES
    assert config({}) == eval(repr(config({})))


@pytest.mark.parametrize("name", ["eps", "max_delta", "max_memory", "max_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), 1e-50, None, "1", True])
def test_value_that_is_not_positive(name, value):
    message = rf"TensorMemoryConfig: {name} must be positive, got {name}={value!r}; 1e-6"
    with pytest.raises(ValueError, match=message):
        config({name: value})


def test_eps_without_end():
    with pytest.raises(ValueError, match=r"TensorMemoryConfig: eps must be finite, got eps=inf;"):
        config({"eps": float("inf")})
    assert config({"max_memory": float("inf")}).max_memory == float("inf")  # no bound at all


@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_dim_out_of_range(value):
    with pytest.raises(ValueError, match=rf"dim must be an integer of at least 1, got dim={value}"):
        config({"dim": value})


@pytest.mark.parametrize("value", [1, "yes"])
def test_rule_that_is_not_a_bool(value):
    message = f"use_delta_rule must be True or False, got use_delta_rule={value!r}"
    with pytest.raises(ValueError, match=message):
        config({"use_delta_rule": value})


def test_no_value_is_assumed():
    with pytest.raises(TypeError, match="max_norm"):
        TensorMemoryConfig(**{k: v for k, v in VALUES.items() if k != "max_norm"})
