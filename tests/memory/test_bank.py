"""Banks: all tokens, chosen tokens, and sizes that are refused."""

import re

import pytest
import torch

from memtx import Normal, StandardMemoryBank, Zeros
from tests.parts import bank_of


@pytest.mark.shapes
@pytest.mark.parametrize("indices", [[0], [3, 1, 1], [[0, 2], [6, 5]], []])
def test_rows_are_those_of_the_whole(indices):
    bank, chosen = bank_of(7, 4), torch.tensor(indices, dtype=torch.int64)
    assert torch.equal(bank.rows(chosen), bank()[chosen])
    assert bank.rows(chosen).shape == (*chosen.shape, 4)


def test_gradient_reaches_the_rows_read_and_no_others():
    bank = bank_of(7, 4)
    bank.rows(torch.tensor([2, 5, 5])).sum().backward()
    assert bank.tokens.grad.sum(-1).tolist() == [0.0, 0.0, 4.0, 0.0, 0.0, 8.0, 0.0]


def test_tokens_start_as_said():
    assert StandardMemoryBank(num_memory_tokens=7, dim=4, init=Zeros())().abs().sum() == 0.0
    wide = StandardMemoryBank(num_memory_tokens=100, dim=100, init=Normal(std=0.5))
    assert abs(wide().std() - 0.5) < 0.02


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["num_memory_tokens", "dim"])
def test_sizes_that_are_refused(name, value):
    text = f"StandardMemoryBank: {name} must be an integer of at least 1, got {name}={value!r};"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        StandardMemoryBank(**({"num_memory_tokens": 7, "dim": 4, "init": Zeros()} | {name: value}))
