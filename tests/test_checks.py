"""The one form of a refusal."""

import re

import pytest

from memtx.checks import refusal, require, require_positive, require_probability
from tests.parts import linear


def test_message_has_owner_rule_values_and_remedy():
    text = refusal(owner="save", rule="it must fit", got={"a": 1, "b": "x"}, remedy="shrink it")
    assert text == "save: it must fit, got a=1, b='x'; shrink it."


def test_owner_can_be_an_instance():
    text = refusal(owner=linear(2, 2), rule="r", got={"a": 1}, remedy="do")
    assert text == "Linear: r, got a=1; do."


def test_require_raises_the_message_only_if_not_ok():
    require(ok=True, owner="save", rule="r", got={}, remedy="do")
    with pytest.raises(ValueError, match=r"^save: r, got a=1; do\.$"):
        require(ok=False, owner="save", rule="r", got={"a": 1}, remedy="do")


@pytest.mark.parametrize("size", [0, -3, True, 2.0, "2", None])
def test_sizes_that_are_refused(size):
    text = f"Part: width must be an integer of at least 1, got width={size!r}; pass a positive size"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        require_positive(owner="Part", sizes={"height": 1, "width": size})


def test_sizes_that_pass():
    require_positive(owner="Part", sizes={"height": 1, "width": 10**12})


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan")])
def test_probabilities_that_are_refused(value):
    text = f"Part: dropout must lie in [0, 1), got dropout={value}; pass 0.0 to switch it off."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        require_probability(owner="Part", name="dropout", value=value)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.999])
def test_probabilities_that_pass(value):
    require_probability(owner="Part", name="dropout", value=value)
