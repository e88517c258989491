"""Initialisers fill in place what they say, and are values."""

import copy
import re

import pytest
import torch

from memtx import FromRows, Linear, Normal, StandardMemoryBank, Zeros
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


def test_rows_are_copied():
    given = torch.randn(7, 4)
    bank = StandardMemoryBank(num_memory_tokens=7, dim=4, init=FromRows(tensor=given))
    assert torch.equal(bank(), given)
    with torch.no_grad():
        bank.tokens.zero_()
    assert given.abs().min() > 0.0
    weight = torch.ones(7, 4, dtype=torch.bfloat16)
    FromRows(tensor=given)(weight)
    assert torch.equal(weight, given.to(torch.bfloat16))


def test_rows_start_any_parameter_of_their_shape():
    given = torch.randn(2, 3)
    part = Linear(in_features=3, out_features=2, bias=False, init=FromRows(tensor=given))
    assert torch.equal(part.weight, given)
    assert isinstance(part.init, Initializer)


def test_rows_hold_no_graph():
    """Token embeddings come with one, and what hangs on one cannot be copied."""
    embedding = torch.nn.Embedding(10, 4)
    init = FromRows(tensor=embedding(torch.tensor([1, 2, 3])))
    assert not init.tensor.requires_grad
    bank = StandardMemoryBank(num_memory_tokens=3, dim=4, init=init)
    bank().sum().backward()
    assert embedding.weight.grad is None
    assert torch.equal(copy.deepcopy(bank)(), bank())


def test_rows_print_their_shape():
    assert repr(FromRows(tensor=torch.ones(2, 3))) == "FromRows(tensor=<tensor of shape [2, 3]>)"


@pytest.mark.parametrize("shape", [(7, 5), (6, 4), (4, 7), (28,)])
def test_rows_of_another_shape_are_refused(shape):
    text = (
        "FromRows: the rows must have the shape of the parameter they fill, "
        f"got rows=(7, 4), parameter={shape};"
    )
    weight = torch.ones(shape)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        FromRows(tensor=torch.zeros(7, 4))(weight)
    assert weight.min() == 1.0


WRONG_ROWS = {
    "one vector": (torch.ones(4), "shape=(4,), dtype='torch.float32';"),
    "a batch": (torch.ones(2, 3, 4), "shape=(2, 3, 4), dtype='torch.float32';"),
    "token ids": (torch.ones(2, 3, dtype=torch.int64), "shape=(2, 3), dtype='torch.int64';"),
    "lists": ([[1.0, 2.0]], "shape=None, dtype='list';"),
}


@pytest.mark.parametrize(("tensor", "text"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_rows_that_are_no_matrix_are_refused(tensor, text):
    rule = "FromRows: tensor must be a matrix of floating numbers, one vector to a row, got "
    with pytest.raises(ValueError, match=f"^{re.escape(rule + text)}"):
        FromRows(tensor=tensor)
