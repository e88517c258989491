"""Narrow banks: they equal their explicit matrices, start as said, and refuse wrong sizes."""

import re

import pytest
import torch

from memtx import (
    FactorizedMemoryBank,
    FromRows,
    MemoryCrossAttention,
    Normal,
    ReducedDimMemoryBank,
    StandardMemoryBank,
    Zeros,
)
from tests.parts import linear, random_like, read_arguments, reader

INDICES = [[0], [3, 1, 1], [[0, 2], [6, 5]], []]


def factorized(num_memory_tokens, dim, rank, init):
    return FactorizedMemoryBank(num_memory_tokens=num_memory_tokens, dim=dim, rank=rank, init=init)


def reduced(num_memory_tokens, rank):
    return ReducedDimMemoryBank(
        num_memory_tokens=num_memory_tokens, rank=rank, init=Normal(std=1.0)
    )


def explicit(bank):
    """A standard bank of the same tokens."""
    return StandardMemoryBank(
        num_memory_tokens=bank.num_memory_tokens, dim=bank.dim, init=FromRows(tensor=bank())
    )


def narrow_reader(bank, dim):
    """Reads in the bank's width: dim -> rank, rank -> rank twice, and back to dim."""
    rank = bank.dim
    return MemoryCrossAttention(
        bank=bank,
        q_proj=linear(dim, rank),
        k_proj=linear(rank, rank),
        v_proj=linear(rank, rank),
        o_proj=linear(rank, dim),
        num_heads=2,
        num_kv_heads=2,
        dropout=0.0,
    )


@pytest.mark.shapes
@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize(
    "bank", [factorized(7, 4, 2, Normal(std=1.0)), reduced(7, 3)], ids=lambda b: type(b).__name__
)
def test_rows_are_those_of_the_whole(bank, indices):
    chosen = torch.tensor(indices, dtype=torch.int64)
    torch.testing.assert_close(bank.rows(chosen), bank()[chosen])
    assert bank.rows(chosen).shape == (*chosen.shape, bank.dim)


def test_factorized_bank_is_a_product():
    bank = factorized(7, 4, 2, Normal(std=1.0))
    torch.testing.assert_close(bank(), bank.coordinates @ bank.directions.T)
    assert torch.linalg.matrix_rank(bank()) == 2


@pytest.mark.parametrize("rank", [1, 2, 16])
@pytest.mark.parametrize("std", [0.02, 1.5])
def test_factorized_tokens_have_the_spread_that_is_named(rank, std):
    bank = factorized(2000, 100, rank, Normal(std=std))
    assert abs(bank().std() - std) < 0.05 * std
    # Not only on the whole: in every place of a token.
    assert (bank().std(dim=0) - std).abs().max() < 0.1 * std


def test_factorized_zeros_are_zero_and_can_learn():
    bank = factorized(7, 4, 2, Zeros())
    assert bank().abs().max() == 0.0
    (bank() * torch.randn(7, 4)).sum().backward()
    assert bank.coordinates.grad.abs().min() > 0.0


def test_factorized_gradient_reaches_the_rows_read_and_no_others():
    bank = factorized(7, 4, 2, Normal(std=1.0))
    (bank.rows(torch.tensor([2, 5])) * torch.randn(2, 4)).sum().backward()
    assert bank.coordinates.grad.abs().sum(-1).nonzero().flatten().tolist() == [2, 5]
    assert bank.directions.grad.abs().min() > 0.0


def test_reduced_bank_is_as_wide_as_its_rank():
    bank = reduced(7, 3)
    assert bank.dim == bank.rank == 3
    assert sum(p.numel() for p in bank.parameters()) == 21


@pytest.mark.parametrize(
    "bank", [factorized(7, 8, 2, Normal(std=1.0)), factorized(9, 8, 8, Zeros())]
)
def test_reading_factorized_equals_reading_the_explicit_matrix(bank):
    random_like(bank)
    narrow, x = random_like(reader(bank, 8)), torch.randn(2, 3, 8)
    wide = MemoryCrossAttention(**(read_arguments(8) | {"bank": explicit(bank)}))
    wide.load_state_dict(narrow.state_dict(), strict=False)  # the projections
    torch.testing.assert_close(narrow(x), wide(x))
    direction = torch.randn(2, 3, 8)
    (whole,) = torch.autograd.grad(wide(x), [wide.bank.tokens], direction)
    mine = torch.autograd.grad(narrow(x), [bank.coordinates, bank.directions], direction)
    torch.testing.assert_close(mine[0], whole @ bank.directions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine[1], whole.T @ bank.coordinates, rtol=1e-4, atol=1e-5)


def test_reading_reduced_equals_reading_the_explicit_matrix():
    """In r dimensions, by the formula of dense reading, and as a standard bank of that width."""
    bank, x = reduced(7, 4), torch.randn(2, 3, 8)
    part = narrow_reader(bank, 8)
    query, key, value = part.q_proj(x), part.k_proj(bank()), part.v_proj(bank())
    heads = []
    for columns in (slice(0, 2), slice(2, 4)):
        scores = query[..., columns] @ key[:, columns].T / 2**0.5
        heads.append(torch.softmax(scores, dim=-1) @ value[:, columns])
    torch.testing.assert_close(part(x), part.o_proj(torch.cat(heads, dim=-1)))
    wanted = part(x)
    part.bank = explicit(bank)
    assert torch.equal(part(x), wanted)


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["num_memory_tokens", "dim", "rank"])
def test_factorized_sizes_that_are_refused(name, value):
    text = f"FactorizedMemoryBank: {name} must be an integer of at least 1, got {name}={value!r};"
    sizes = {"num_memory_tokens": 7, "dim": 4, "rank": 2} | {name: value}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        FactorizedMemoryBank(**sizes, init=Zeros())


@pytest.mark.parametrize(("num_memory_tokens", "dim", "rank"), [(7, 4, 5), (3, 8, 4)])
def test_rank_above_the_sizes_is_refused(num_memory_tokens, dim, rank):
    text = (
        "FactorizedMemoryBank: rank must not exceed the smaller of num_memory_tokens and dim, "
        f"got rank={rank}, num_memory_tokens={num_memory_tokens}, dim={dim};"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        factorized(num_memory_tokens, dim, rank, Zeros())


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["num_memory_tokens", "rank"])
def test_reduced_sizes_that_are_refused(name, value):
    text = f"ReducedDimMemoryBank: {name} must be an integer of at least 1, got {name}={value!r};"
    sizes = {"num_memory_tokens": 7, "rank": 2} | {name: value}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        ReducedDimMemoryBank(**sizes, init=Zeros())


def test_reader_of_another_width_is_refused():
    text = (
        "MemoryCrossAttention: k_proj must read the bank's width, "
        "got k_proj.in_features=8, bank.dim=4;"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        reader(reduced(7, 4), 8)
