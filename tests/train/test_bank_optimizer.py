"""Sparse gradients of banks, clipping with them, and optimizers that touch only what was read."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from memtx import (
    FactorizedMemoryBank,
    Normal,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    RollingRouting,
    TokenRouting,
)
from memtx.memory.sparse import row_parameter
from memtx.train import AdamW, ParameterGroup, SingleProcess
from memtx.train.bank_optimizer import BankRows, RowAdagrad, RowAdam, RowSGD
from memtx.train.sparse_gradients import clip_gradients, sparse_bank_gradients
from tests import routing
from tests.models import stacks
from tests.models.stacks import token_ids, working
from tests.parts import bank_of
from tests.routing import MIXINGS

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ADAM = AdamW(betas=(0.9, 0.95), eps=1e-8)
RULES = [RowSGD(), RowAdagrad(eps=1e-10), RowAdam(betas=(0.9, 0.95), eps=1e-8)]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
BANKS = {
    "standard": lambda: bank_of(36, 8),
    "reduced": lambda: ReducedDimMemoryBank(num_memory_tokens=36, rank=8, init=Normal(std=1.0)),
    "factorized": lambda: FactorizedMemoryBank(
        num_memory_tokens=36, dim=8, rank=3, init=Normal(std=1.0)
    ),
}


def model_of(bank):
    strategy = RollingRouting(window=2)
    model = working(stacks.reading_arguments(bank, strategy, MIXINGS["joint"]))
    return model.train()


def groups_of(model, *, decay):
    return [
        ParameterGroup(
            name="rest",
            modules=[model],
            without=list(model.banks),
            learning_rate=1e-2,
            weight_decay=0.1,
        ),
        ParameterGroup(
            name="banks",
            modules=list(model.banks),
            without=[],
            learning_rate=3e-2,
            weight_decay=decay,
        ),
    ]


def backward(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


def gradients(model):
    return {
        name: None if p.grad is None else p.grad.to_dense().clone()
        for name, p in model.named_parameters()
    }


def expect_equal(given, wanted):
    assert given.keys() == wanted.keys()
    for name, other in wanted.items():
        torch.testing.assert_close(given[name], other, **CLOSE)


@pytest.mark.parametrize("kind", BANKS)
def test_sparse_gradients_are_the_dense_ones(kind):
    model, ids = model_of(BANKS[kind]()), token_ids(2, 5)
    backward(model, ids)
    wanted = gradients(model)
    parameter = row_parameter(model.banks[0])
    with sparse_bank_gradients(model) as sparse:
        assert list(sparse.banks) == list(model.banks)
        backward(model, ids)
        assert parameter.grad.is_sparse
        expect_equal(gradients(model), wanted)
    backward(model, ids)
    assert not parameter.grad.is_sparse


@pytest.mark.parametrize("length", [2, 24], ids=["some", "all"])
def test_a_compiler_takes_sparse_gradients(length):
    """Where there are more choices than chapters a trace reads all of them."""
    read = routing.reader(RollingRouting(window=2), MIXINGS["joint"], {})
    x = torch.randn(1, length, 8)
    read(x).sum().backward()
    wanted = gradients(read)
    read.zero_grad()
    with sparse_bank_gradients(read):
        torch.compile(read, backend="aot_eager", fullgraph=True)(x).sum().backward()
        assert read.bank.tokens.grad.is_sparse
    expect_equal(gradients(read), wanted)


def several_reads():
    readers = [routing.reader(RollingRouting(window=2), MIXINGS["joint"], {}) for _ in range(3)]
    for each in readers:
        each.bank = readers[0].bank
    return nn.Sequential(*readers)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiler_adds_up_what_several_reads_do_to_a_bank(backend):
    reads, x = several_reads(), torch.randn(1, 4, 8)
    reads(x).sum().backward()
    wanted = gradients(reads)
    reads.zero_grad()
    with sparse_bank_gradients(reads):
        reads = copy.deepcopy(reads)  # a copy hands over to its own bank
        torch.compile(reads, backend=backend, fullgraph=True)(x).sum().backward()
    assert reads[0].bank.tokens.grad.is_sparse
    expect_equal(gradients(reads), wanted)


def test_only_what_is_read_is_in_the_gradient():
    model, ids = model_of(bank_of(36, 8)), token_ids(1, 2)
    with sparse_bank_gradients(model):
        backward(model, ids)
    read = model.banks[0].tokens.grad.coalesce().indices()[0]
    assert len(read) < 36
    assert len(read) % 4 == 0  # whole chapters


@pytest.mark.parametrize("max_norm", [0.01, 1e3, math.inf])
def test_clipping_is_that_of_dense_gradients(max_norm):
    model, ids = model_of(bank_of(36, 8)), token_ids(2, 5)
    other = copy.deepcopy(model)
    backward(model, ids)
    wanted = clip_gradients(list(model.parameters()), max_norm)
    with sparse_bank_gradients(other):
        backward(other, ids)
    given = SingleProcess(device=torch.device("cpu")).clip(list(other.parameters()), max_norm)
    torch.testing.assert_close(given, wanted, **CLOSE)
    expect_equal(gradients(other), gradients(model))


def taken(model, optimizer, rows, *, steps):
    """The bank after some steps, each with its own rows of ids."""
    for step in range(steps):
        backward(model, rows[step])
        clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
    return row_parameter(model.banks[0]).detach().clone()


DENSE = {
    "RowSGD": lambda p: torch.optim.SGD([p], lr=3e-2),
    "RowAdagrad": lambda p: torch.optim.Adagrad([p], lr=3e-2, eps=1e-10),
}


@pytest.mark.parametrize("rule", RULES[:2], ids=DENSE)
def test_exact_rules_do_what_the_dense_optimizer_does(rule):
    rows = [token_ids(2, 5) for _ in range(4)]
    model = model_of(bank_of(36, 8))
    other = copy.deepcopy(model)
    with sparse_bank_gradients(model) as sparse:
        optimizer = BankRows(rows=rule, rest=ADAM, banks=sparse.banks).make(
            groups_of(model, decay=0.0)
        )
        given = taken(model, optimizer, rows, steps=4)

    class Both:
        """The same two optimizers by hand, with dense gradients."""

        bank = DENSE[type(rule).__name__](other.banks[0].tokens)
        rest = ADAM.make(groups_of(other, decay=0.0)[:1])

        def step(self):
            self.bank.step()
            self.rest.step()

    wanted = taken(other, Both(), rows, steps=4)
    torch.testing.assert_close(given, wanted, **CLOSE)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@each_rule
def test_what_is_not_read_is_not_touched(rule):
    model = model_of(bank_of(36, 8))
    before = model.banks[0].tokens.detach().clone()
    with sparse_bank_gradients(model) as sparse:
        optimizer = BankRows(rows=rule, rest=ADAM, banks=sparse.banks).make(
            groups_of(model, decay=0.0)
        )
        backward(model, token_ids(1, 2))
        read = model.banks[0].tokens.grad.coalesce().indices()[0]
        optimizer.step()
    moved = (model.banks[0].tokens != before).any(dim=1).nonzero()[:, 0]
    assert 0 < len(moved) <= len(read) < 36
    assert set(moved.tolist()) <= set(read.tolist())


def test_row_adam_is_adam_where_every_row_is_read():
    """And is not, where one is not: that is why it has a name of its own."""
    weight = nn.Parameter(torch.randn(5, 3))
    bank = bank_of(5, 3)
    with torch.no_grad():
        bank.tokens.copy_(weight)
    groups = [
        ParameterGroup(
            name="banks", modules=[bank], without=[], learning_rate=1e-2, weight_decay=0.0
        )
    ]
    optimizer = BankRows(rows=RULES[2], rest=ADAM, banks=[bank]).make(groups)
    dense = torch.optim.Adam([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8)

    def step(rows):
        gradient = torch.zeros(5, 3)
        gradient[rows] = torch.randn(len(rows), 3)
        weight.grad = gradient
        index = torch.tensor([rows])
        bank.tokens.grad = torch.sparse_coo_tensor(
            index, gradient[rows], (5, 3), check_invariants=True
        )
        dense.step()
        optimizer.step()

    for _ in range(3):
        step([0, 1, 2, 3, 4])
    torch.testing.assert_close(bank.tokens, weight, rtol=1e-5, atol=1e-6)
    step([0, 1])
    torch.testing.assert_close(bank.tokens[:2], weight[:2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(bank.tokens[2:], weight[2:], rtol=1e-3)


@each_rule
def test_a_state_goes_on_where_it_was_left(rule):
    rows = [token_ids(2, 5) for _ in range(4)]
    model = model_of(bank_of(36, 8))

    def optimizer_of(each):
        value = BankRows(rows=rule, rest=ADAM, banks=list(each.banks))
        return value.make(groups_of(each, decay=0.0))

    first = optimizer_of(model)
    with sparse_bank_gradients(model):
        taken(model, first, rows[:2], steps=2)
        other = copy.deepcopy(model)
        kept = copy.deepcopy(first.state_dict())
        wanted = taken(model, first, rows[2:], steps=2)
    with sparse_bank_gradients(other):
        second = optimizer_of(other)
        second.load_state_dict(kept)
        given = taken(other, second, rows[2:], steps=2)
    assert torch.equal(given, wanted)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_rates_of_the_groups_are_followed():
    model = model_of(bank_of(36, 8))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with sparse_bank_gradients(model) as sparse:
        optimizer = BankRows(rows=RowSGD(), rest=ADAM, banks=sparse.banks).make(
            groups_of(model, decay=0.0)
        )
        assert [each["lr"] for each in optimizer.param_groups] == [1e-2, 3e-2]
        optimizer.param_groups[0]["lr"] = 0.0
        backward(model, token_ids(2, 5))
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"banks.0.tokens"}


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_a_bank_that_is_read_whole_is_refused():
    message = (
        "sparse_bank_gradients: the model must have routed reads, and none of their banks be read "
        "whole, got routed reads={}, banks read whole={}; give dense reads a bank of their own."
    )
    with refused(message.format(0, 0)):
        sparse_bank_gradients(working(stacks.dense_arguments()))
    bank = bank_of(36, 8)
    routed = stacks.routed(bank, TokenRouting(), MIXINGS["joint"])
    arguments = stacks.stack_arguments(banks=[bank], layers=[[routed, stacks.recall(bank, 8)]])
    with refused(message.format(1, 1)):
        sparse_bank_gradients(working(arguments))


def test_a_bank_without_rows_of_its_own_is_refused():
    bank = QuantizedMemoryBank(num_memory_tokens=36, dim=8, bits=8, block_size=64)
    message = (
        "row_parameter: the bank must have a parameter with a row for each memory token, got "
        "bank='QuantizedMemoryBank'; use a StandardMemoryBank, ReducedDimMemoryBank or "
        "FactorizedMemoryBank."
    )
    with refused(message):
        BankRows(rows=RowSGD(), rest=ADAM, banks=[bank])


def test_decay_and_a_bank_in_no_group_are_refused():
    model = model_of(bank_of(36, 8))
    value = BankRows(rows=RowSGD(), rest=ADAM, banks=list(model.banks))
    message = (
        "BankRows: each bank must be in a group without weight decay, which would move every row, "
        "got banks in no group={}, weight decay={}; give the banks a group of their own with "
        "weight_decay=0.0."
    )
    with refused(message.format(0, "{'banks': 0.5}")):
        value.make(groups_of(model, decay=0.5))
    with refused(message.format(1, "{}")):
        value.make(groups_of(model, decay=0.0)[:1])


def test_a_dense_gradient_and_no_bank_and_no_eps_are_refused():
    model = model_of(bank_of(36, 8))
    optimizer = BankRows(rows=RowSGD(), rest=ADAM, banks=list(model.banks)).make(
        groups_of(model, decay=0.0)
    )
    backward(model, token_ids(1, 4))
    with refused(
        "BankRows: the gradients of its banks must be sparse, got dense gradients=1; call "
        "sparse_bank_gradients(model) before the first step."
    ):
        optimizer.step()
    with refused(
        "BankRows: banks must be at least one, got banks=0; use the other optimizer alone where "
        "there is no bank."
    ):
        BankRows(rows=RowSGD(), rest=ADAM, banks=[])
    with refused("RowAdagrad: eps must be positive, got eps=0.0; 1e-8 is usual."):
        RowAdagrad(eps=0.0)
    with refused("RowAdam: eps must be positive, got eps=-1.0; 1e-8 is usual."):
        RowAdam(betas=(0.9, 0.95), eps=-1.0)
