"""What every component promises, driven by the contract table."""

import json

import pytest
import torch
from torch import nn

import memtx
from memtx import build, describe, to_source
from memtx.expression import arguments, expression, parameters_of
from memtx.spec.classes import CLASSES
from tests.contract import CONTRACTS, run
from tests.parts import randomize, randomize_buffers


@pytest.fixture(params=CONTRACTS, ids=[f"{i}-{c.cls.__name__}" for i, c in enumerate(CONTRACTS)])
def contract(request):
    return request.param


def input_of(contract):
    return None if contract.takes is None else torch.randn(contract.takes)


def working(contract):
    part = contract.make()
    randomize(part.parameters())
    randomize_buffers(part)
    return part


def from_source(text):
    scope = {}
    exec(text, scope)
    return scope["model"]


# The other ways to the same part; each must give it back with fresh parameters.
REMAKES = {
    "build": lambda part: build(describe(part)),
    "build from JSON": lambda part: build(json.loads(json.dumps(describe(part)))),
    "to_source": lambda part: from_source(to_source(part)),
    "repr": lambda part: eval(repr(part), dict(vars(memtx))),
}


def test_table_has_every_component():
    modules = {name for name, cls in CLASSES.items() if issubclass(cls, nn.Module)}
    # An adapter cannot stand alone: it has tests of its own.
    assert {c.cls.__name__ for c in CONTRACTS} == modules - {"MemoryAdapter"}


@pytest.mark.shapes
def test_shape_and_dtype(contract):
    part, x = working(contract), input_of(contract)
    # A bank gives its parameter itself, which `to` changes in place.
    y = run(part, x).detach().clone()
    assert y.shape == contract.gives
    assert y.dtype == torch.float32
    half = run(part.to(torch.bfloat16), None if x is None else x.to(torch.bfloat16))
    assert half.shape == contract.gives
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, rtol=0.1, atol=0.1 * y.abs().max().item())


@pytest.mark.shapes
def test_every_parameter_gets_a_gradient(contract):
    part = working(contract)
    y = run(part, input_of(contract))
    # A bank may hold no parameters, and then gives what no gradient flows to.
    assert y.requires_grad == any(True for _ in part.parameters())
    if not y.requires_grad:
        return
    (y * torch.randn(contract.gives)).sum().backward()
    without = [
        name for name, p in part.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []


@pytest.mark.shapes
def test_seed_decides_everything(contract):
    torch.manual_seed(5)
    first = contract.make()
    torch.manual_seed(5)
    second = contract.make()
    for (name, p), (other, q) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(p, q)
    x = input_of(contract)
    assert torch.equal(run(first, x), run(second, x))
    assert torch.equal(run(first, x), run(first, x))


def test_constructor_arguments_are_attributes(contract):
    given = contract.arguments()
    part = contract.cls(**given)
    assert list(given) == list(parameters_of(type(part)))
    for name, value in given.items():
        kept = getattr(part, name)
        assert list(kept) == value if isinstance(value, list) else kept is value
    assert arguments(part) == given


def test_repr_is_the_expression(contract):
    part = contract.make()
    assert repr(part) == expression(part)
    assert repr(part).startswith(f"{contract.cls.__name__}(")


@pytest.mark.parametrize("remake", REMAKES.values(), ids=REMAKES)
def test_remade_part_is_equal(contract, remake):
    part, x = working(contract), input_of(contract)
    again = remake(part)
    assert type(again) is type(part)
    assert describe(again) == describe(part)
    assert repr(again) == repr(part)
    assert to_source(again) == to_source(part)
    again.load_state_dict(part.state_dict())
    assert torch.equal(run(again, x), run(part, x))


def test_remade_part_starts_fresh(contract):
    part = working(contract)
    again = build(describe(part))
    names = {name for name, p in part.named_parameters()}
    assert names == {
        name
        for (name, p), q in zip(again.named_parameters(), part.parameters(), strict=True)
        if not torch.equal(p, q)
    }


def test_part_is_what_it_can_be_passed_as(contract):
    if contract.interface is not None:
        assert isinstance(contract.make(), contract.interface)
