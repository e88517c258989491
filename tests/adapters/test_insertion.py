"""Insertions: what their sub-layers add together, their dtype, and what is refused."""

import re

import pytest
import torch

from memtx import Insertion, Site
from tests.adapters.bases import SITES
from tests.parts import bank_of, random_like, recall, think


def test_gives_what_the_sublayers_add_one_after_another():
    blocks = [recall(bank_of(7, 8), 8), think(8), think(8)]
    part = random_like(Insertion(layer=0, site=Site.AFTER_MLP, sublayers=blocks))
    x = torch.randn(2, 3, 8)
    through = x
    for block in blocks:
        through = block(through)
    torch.testing.assert_close(part(x), through - x, rtol=1e-4, atol=1e-5)
    assert part.dim == 8


def test_runs_in_the_dtype_of_its_parameters():
    """A stream of lower precision is read exactly and answered in its own dtype."""
    part = random_like(Insertion(layer=0, site=Site.AFTER_MLP, sublayers=[think(8)]))
    x = torch.randn(2, 3, 8).to(torch.bfloat16)
    assert torch.equal(part(x), part(x.float()).to(torch.bfloat16))
    half = part.to(torch.bfloat16)
    assert half(torch.randn(2, 3, 8)).dtype == torch.float32


@pytest.mark.parametrize("layer", [-1, 1.0, "0", None, True])
def test_layer_that_is_refused(layer):
    text = f"Insertion: layer must be an index from 0, got layer={layer!r}; count decoder layers"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        Insertion(layer=layer, site=Site.AFTER_MLP, sublayers=[think(8)])


@pytest.mark.parametrize("site", ["after_mlp", None, 1])
def test_site_that_is_refused(site):
    text = (
        f"Insertion: site must be a Site, got site={site!r}; "
        "use Site.AFTER_ATTENTION or Site.AFTER_MLP."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Insertion(layer=0, site=site, sublayers=[think(8)])


@pytest.mark.parametrize("widths", [[], [8, 4]])
def test_sublayers_that_are_refused(widths):
    text = f"Insertion: sublayers must be at least one, all of one width, got widths={widths}; pass"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        Insertion(layer=0, site=SITES[0], sublayers=[think(width) for width in widths])
