"""Which memory tokens a text reads that others do not."""

import re

import pytest
import torch

from memtx import SinkMemoryBank, Site
from memtx.usage import most_particular, read_counts
from tests.adapters.bases import llama, working_adapter
from tests.parts import bank_of

ROWS = [[3, 4, 5], [6, 7]]


def test_counts_are_those_of_the_reads_of_every_reader():
    """Two readers, two kept for each token: four counts a token, of largest weight."""
    adapter = working_adapter(llama(), Site.AFTER_ATTENTION)
    found = read_counts(adapter, bank=adapter.banks[0], rows=ROWS, kept=2)
    assert found.shape == (2, 7)
    assert found.sum(dim=1).tolist() == [3 * 2 * 2, 2 * 2 * 2]
    alone = read_counts(adapter, bank=adapter.banks[0], rows=ROWS[1:], kept=2)
    assert torch.equal(alone[0], found[1])
    everything = read_counts(adapter, bank=adapter.banks[0], rows=ROWS, kept=7)
    assert everything.tolist() == [[6.0] * 7, [4.0] * 7]


def test_what_is_read_by_all_is_not_chosen():
    bank = bank_of(4, 2)
    new = torch.tensor([[6.0, 4.0, 2.0, 0.0], [6.0, 0.0, 2.0, 0.0]])
    background = torch.tensor([[1.0, 1.0, 0.0, 5.0], [9.0, 0.0, 0.0, 5.0], [9.0, 0.0, 0.0, 0.0]])
    # Shares 0.6, 0.2, 0.2, 0; background rows 3, 1, 0, 2 of 3: 0, 0.139, 0.277, 0.
    assert most_particular(bank=bank, new=new, background=background, num_tokens=1) == [2]
    assert most_particular(bank=bank, new=new, background=background, num_tokens=4) == [1, 2]


def test_empty_tokens_are_not_chosen():
    bank = SinkMemoryBank(num_sinks=1, stored=bank_of(2, 2))
    new, none = torch.tensor([[5.0, 1.0, 0.0]]), torch.zeros(1, 3)
    assert most_particular(bank=bank, new=new, background=none, num_tokens=2) == [1]


def test_what_is_refused():
    adapter = working_adapter(llama(), Site.AFTER_ATTENTION)
    with pytest.raises(ValueError, match="rows=1, empty=1"):
        read_counts(adapter, bank=adapter.banks[0], rows=[[]], kept=1)
    with pytest.raises(ValueError, match="readers=0"):
        read_counts(adapter, bank=bank_of(7, 4), rows=ROWS, kept=1)
    counts = torch.ones(1, 4)
    with pytest.raises(ValueError, match="num_tokens=0"):
        most_particular(bank=bank_of(4, 2), new=counts, background=counts, num_tokens=0)
    with pytest.raises(ValueError, match=re.escape("[5, 4, 4]")):
        most_particular(bank=bank_of(5, 2), new=counts, background=counts, num_tokens=1)
