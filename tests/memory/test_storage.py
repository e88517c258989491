"""Projected memory tokens are kept as they are, in another dtype, or in 8 bits."""

import re

import pytest
import torch

from memtx.memory.storage import AsProjected, InDtype, InEightBits


def pieces():
    return [torch.randn(8, 2, 16), torch.randn(4, 2, 16)]


def test_as_projected_keeps_every_bit():
    given = pieces()
    kept = AsProjected().keep(given)
    assert torch.equal(kept.all(), torch.cat(given))
    assert kept.is_plain
    assert kept.nbytes == 12 * 2 * 16 * 4
    assert kept.all().data_ptr() == kept.all().data_ptr()  # nothing is copied


def test_in_dtype_rounds_once():
    given = pieces()
    kept = InDtype(dtype=torch.bfloat16).keep(given)
    assert torch.equal(kept.all(), torch.cat(given).bfloat16())
    assert kept.nbytes == 12 * 2 * 16 * 2


def test_a_dtype_without_attention_is_refused():
    message = (
        "InDtype: dtype must be one in which torch computes attention, got dtype=torch.int8; pass "
        "torch.bfloat16, or InEightBits() for fewer bytes."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        InDtype(dtype=torch.int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "most"), [(64, 0.0063), (128, 0.0069)])
def test_eight_bits_err_by_what_the_documentation_says(dtype, width, most):
    given = torch.randn(2_000, 2, width).to(dtype)
    kept = InEightBits().keep([given])
    assert kept.all().dtype == dtype
    error = (kept.all().float() - given.float()).norm() / given.float().norm()
    assert 0.004 < error < most
    assert kept.nbytes == given.numel() + 2 * 2_000 * given.element_size()


def test_eight_bits_keep_zero_and_the_largest():
    given = torch.zeros(3, 1, 4)
    given[1, 0, 2] = -5.0
    assert torch.equal(InEightBits().keep([given]).all(), given)


@pytest.mark.parametrize("storage", [AsProjected(), InEightBits()])
def test_chapters_are_those_of_all(storage):
    kept = storage.keep(pieces())
    numbers = torch.tensor([[2, 0], [1, 1]])
    found = kept.chapters(numbers, 4)
    assert found.shape == (2, 2, 4, 2, 16)
    assert torch.equal(found, kept.all().unflatten(0, (3, 4))[numbers])
