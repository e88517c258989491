"""Sums and products over chunks, and the triangular inverse."""

import pytest
import torch
from torch import library

from memtx.ops import tensor_scan
from memtx.ops.tensor_scan import (
    decayed_sums,
    decayed_sums_backward,
    matrix_scan,
    scan_by_halves,
    scan_in_order,
    unit_lower_inverse,
)


@pytest.mark.parametrize("size", [2, 4, 16, 32, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse(size, dtype):
    """Rows that are shares of a whole, as the delta rule has them."""
    strict = torch.rand(3, 2, size, size, dtype=torch.float64).tril(-1)
    strict = strict / strict.sum(dim=-1, keepdim=True).clamp(min=1e-9)
    wanted = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + strict)
    given = unit_lower_inverse(strict.to(dtype))
    assert given.dtype == dtype
    assert (given - wanted).abs().max() < (1e-6 if dtype == torch.float32 else 1e-14)


def test_inverse_of_the_hardest_rows():
    """Each row takes the whole of the one before: the terms of the series do not shrink."""
    strict = torch.diag(torch.ones(127), -1)
    signs = torch.tensor([1.0, -1.0]).repeat(64)
    wanted = (signs[:, None] * signs).tril()
    assert torch.equal(unit_lower_inverse(strict), wanted)


@pytest.mark.parametrize("group", [2, 64])
@pytest.mark.parametrize("with_start", [False, True])
def test_decayed_sums(group, with_start, monkeypatch):
    """Against a loop over the chunks, with documents and decay, in one group and in several."""
    monkeypatch.setattr(tensor_scan, "GROUP", group)
    counts = torch.tensor([[[0, 4, 7, 7, 11, 15]]])
    runs = torch.tensor([[[0, 0, 0, 1, 1, 1]], [[0, 0, 0, 0, 0, 2]]])
    decay = torch.tensor([0.9, 0.5], dtype=torch.float64)
    added = torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    about = {"counts": counts, "runs": runs, "rate": decay.log()[:, None, None]}
    state, states = (start if with_start else torch.zeros_like(start)), []
    for chunk in range(5):
        states.append(state)
        kept = decay ** (counts[0, 0, chunk + 1] - counts[0, 0, chunk])
        same = (runs[:, 0, chunk] == runs[:, 0, chunk + 1]).double()
        state = (same[:, None] * kept)[..., None] * state + added[:, :, chunk]
    wanted = torch.stack(states, dim=2)
    given = decayed_sums(added, start if with_start else None, **about)
    torch.testing.assert_close(given, wanted)
    direction = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, [added, start], direction, allow_unused=True)
    for_added, for_start = decayed_sums_backward(direction, **about)
    torch.testing.assert_close(for_added, gradients[0])
    if with_start:
        torch.testing.assert_close(for_start, gradients[1])


@pytest.mark.parametrize("backwards", [False, True])
def test_matrix_scan(backwards):
    factors, added = torch.randn(2, 3, 4, 2, 2)
    start = torch.randn(3, 2, 2)
    for given in (start, None):
        states = matrix_scan(factors, added, given, backwards)
        assert states.shape == (3, 5, 2, 2)
        state = torch.zeros_like(start) if given is None else start
        for chunk in reversed(range(4)) if backwards else range(4):
            here = chunk + 1 if backwards else chunk
            torch.testing.assert_close(states[:, here], state)
            factor = factors[:, chunk].mT if backwards else factors[:, chunk]
            state = factor @ state + added[:, chunk]
        torch.testing.assert_close(states[:, 0 if backwards else 4], state)


@pytest.mark.parametrize("chunks", [1, 8, 9, 17, 33, 64, 100])
def test_halves_give_what_the_order_gives(chunks):
    """In steps whose number grows with the logarithm: what a GPU does."""
    factors = torch.randn(2, chunks, 4, 4, dtype=torch.float64) / 2.0
    added, start = torch.randn(2, chunks, 4, 3).double(), torch.randn(2, 4, 3).double()
    wanted = scan_in_order(factors, added, start)
    torch.testing.assert_close(scan_by_halves(factors, added, start), wanted)


def test_matrix_scan_is_a_sound_operator():
    factors, added = torch.randn(2, 3, 4, 2, 2)
    for backwards in (False, True):
        arguments = (factors, added, torch.randn(3, 2, 2), backwards)
        library.opcheck(matrix_scan, arguments, test_utils=("test_schema", "test_faketensor"))
