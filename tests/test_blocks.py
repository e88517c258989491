"""A residual sub-layer adds its branch to the stream."""

import pytest
import torch

from memtx import Residual, RMSNorm
from tests.parts import mlp, random_like, think


@pytest.mark.shapes
def test_adds_the_sublayer_of_the_normalised_stream():
    block, x = random_like(think(8)), torch.randn(2, 3, 8)
    branch = block.sublayer(block.norm(x))
    assert branch.abs().max() > 0.0
    assert torch.equal(block.branch(x), branch)
    assert torch.equal(block(x), x + branch)
    assert block.dim == 8


def test_fresh_zero_output_changes_nothing():
    x = torch.randn(2, 3, 8)
    assert torch.equal(think(8)(x), x)


def test_widths_that_differ_are_refused():
    text = (
        r"^Residual: norm and sublayer must have the width of the stream, "
        r"got norm\.dim=4, sublayer\.dim=8; give both the same width\.$"
    )
    with pytest.raises(ValueError, match=text):
        Residual(norm=RMSNorm(dim=4, eps=1e-5), sublayer=mlp(8))
