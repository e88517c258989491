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


def chunks_of(*, chunks, decays, dtype):
    """What 3 rows of chunks keep, change and add, and the state before them."""
    whole = torch.rand(3, chunks) if decays else None
    keys = torch.randn(3, chunks, 4, 2)
    # Something is taken off along two keys, as a rule does; the two sides are not the same.
    sides = keys * torch.rand(3, chunks, 4, 1), keys.mT / keys.square().sum((-2, -1), keepdim=True)
    change = -(sides[0] @ sides[1]).to(dtype)
    return whole, change, torch.randn(3, chunks, 4, 4), torch.randn(3, 4, 4)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_matrix_scan(backwards, decays):
    whole, change, added, start = chunks_of(chunks=4, decays=decays, dtype=torch.float32)
    for given in (start, None):
        states = matrix_scan(whole, change, added, given, backwards)
        assert states.shape == (3, 5, 4, 4)
        state = torch.zeros_like(start) if given is None else start
        for chunk in reversed(range(4)) if backwards else range(4):
            here = chunk + 1 if backwards else chunk
            torch.testing.assert_close(states[:, here], state)
            kept = 1.0 if whole is None else whole[:, chunk, None, None]
            factor = change[:, chunk].mT if backwards else change[:, chunk]
            state = kept * state + factor @ state + added[:, chunk]
        torch.testing.assert_close(states[:, 0 if backwards else 4], state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("chunks", [1, 8, 9, 17, 33, 64, 100])
def test_halves_give_what_the_order_gives(chunks, backwards, decays, dtype):
    """In steps whose number grows with the logarithm: what a GPU does."""
    inputs = chunks_of(chunks=chunks, decays=decays, dtype=dtype)
    wanted = scan_in_order(*inputs, backwards)
    given = scan_by_halves(*inputs, backwards)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert (given - wanted).norm() < bound * wanted.norm()


def test_narrow_changes_keep_what_is_not_changed():
    """After 4,096 chunks that change next to nothing, the state is what it was."""
    change = torch.full((1, 4_096, 2, 2), 1e-6, dtype=torch.bfloat16)
    nothing, start = torch.zeros(1, 4_096, 2, 2), torch.eye(2)[None] / 3.0
    wanted = torch.linalg.matrix_power(torch.eye(2).double() + change[0, 0].double(), 4_096) / 3.0
    for scan in (scan_in_order, scan_by_halves):
        last = scan(None, change, nothing, start, False)[0, -1]
        torch.testing.assert_close(last.double(), wanted, rtol=1e-4, atol=1e-5)


def test_matrix_scan_is_a_sound_operator():
    whole, change, added, start = chunks_of(chunks=3, decays=True, dtype=torch.bfloat16)
    for backwards in (False, True):
        arguments = (whole, change, added, start, backwards)
        library.opcheck(matrix_scan, arguments, test_utils=("test_schema", "test_faketensor"))
