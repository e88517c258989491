"""What a base makes of a text, and memory tokens that start from it."""

import re

import pytest
import torch

from memtx.usage import centres, evenly_spaced, text_states
from tests.adapters.bases import HIDDEN, llama

ROWS = [[3, 4, 5], [6, 7]]


def test_states_are_those_that_go_into_the_layer():
    base = llama()
    seen = []
    handle = base.model.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = text_states(model=base, rows=ROWS, layer=1)
    handle.remove()
    wanted = torch.cat([each[0] for each in seen])
    assert found.shape == (5, HIDDEN)
    torch.testing.assert_close(found, wanted / wanted.square().mean(-1, keepdim=True).sqrt())


def test_even_distances():
    states = torch.arange(5.0)[:, None]
    assert evenly_spaced(states, num_rows=2).flatten().tolist() == [0.0, 2.0]
    assert evenly_spaced(states, num_rows=7).flatten().tolist() == [0, 0, 1, 2, 2, 3, 4]


def test_centres_are_means_of_groups():
    torch.manual_seed(1)
    means = torch.tensor([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])
    groups = [mean + torch.randn(20, 2) for mean in means]
    states = torch.cat(groups)
    # Some draws put two centres into one group, as k-means does; this one does not.
    found = centres(states, num_rows=3, iterations=10, seed=2)
    wanted = torch.stack([group.mean(dim=0) for group in groups])
    distances = torch.cdist(found, wanted).min(dim=0).values
    assert distances.max() < 1e-4
    assert torch.equal(found, centres(states, num_rows=3, iterations=10, seed=2))


def test_more_centres_than_states():
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = centres(states, num_rows=5, iterations=3, seed=0)
    assert found.shape == (5, 2)
    assert {tuple(row) for row in found.tolist()} == {(1.0, 0.0), (0.0, 1.0)}


def test_what_is_refused():
    base = llama()
    with pytest.raises(ValueError, match="rows=1, empty=0, layer=3"):
        text_states(model=base, rows=[[1]], layer=3)
    with pytest.raises(ValueError, match="rows=2, empty=1, layer=0"):
        text_states(model=base, rows=[[1], []], layer=0)
    with pytest.raises(ValueError, match=re.escape("num_rows=0, states=(2, 1)")):
        evenly_spaced(torch.zeros(2, 1), num_rows=0)
    with pytest.raises(ValueError, match=re.escape("states=(0, 4)")):
        centres(torch.zeros(0, 4), num_rows=1, iterations=1, seed=0)
    with pytest.raises(ValueError, match="iterations=0"):
        centres(torch.zeros(3, 4), num_rows=1, iterations=0, seed=0)
