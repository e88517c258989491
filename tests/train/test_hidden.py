"""A term without some memory tokens: what it reads, what learns by it, what is refused."""

import re

import pytest
import torch
from torch import nn

from memtx import TokenRouting
from memtx.train import NextTokenLoss, WithoutTokens
from memtx.usage import without_chapters
from tests import parts
from tests.train import tiny

HIDDEN = [0, 1, 2, 3, 8, 9, 10, 11]


def hiding(model):
    return WithoutTokens(term=tiny.facts_term(), bank=model.banks[0], tokens=HIDDEN)


def test_it_is_the_loss_of_the_model_without_them_and_they_get_no_gradient():
    model = tiny.adapter(model=tiny.base(seed=0))
    tiny.perturb(model)
    bank, batch = model.banks[0], tiny.fact_batches(batch_size=5)[0]
    term, plain = hiding(model), tiny.facts_term()
    found = term.totals(model, batch)
    with without_chapters(model, bank=bank, chapters=[0, 2], tokens_per_chapter=4), torch.no_grad():
        wanted = plain.totals(model, batch)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, plain.totals(model, batch), rtol=1e-4)
    found.sum().backward()
    read = bank.tokens.grad.abs().sum(dim=1) > 0
    assert (~read).nonzero().flatten().tolist() == HIDDEN


def test_afterwards_readers_read_the_bank_again_whatever_happens():
    model = tiny.adapter(model=tiny.base(seed=0))
    names = list(model.state_dict())
    with pytest.raises(KeyError):
        hiding(model).totals(model, {})
    assert [p for p in model.modules() if hasattr(p, "bank") and p.bank is not model.banks[0]] == []
    assert list(model.state_dict()) == names


def test_name_weight_and_counts_are_those_of_the_other_term():
    model = tiny.adapter(model=tiny.base(seed=0))
    term, plain = hiding(model), tiny.facts_term()
    batch = tiny.fact_batches(batch_size=2)[0]
    assert (term.name, term.stream, term.weight) == ("facts", "facts", 1.0)
    assert term.weights(model) == plain.weights(model)
    assert torch.equal(term.counts(model, batch), plain.counts(model, batch))
    term.check(model)


@pytest.mark.parametrize(
    ("tokens", "value"), [([24], "tokens=[24]"), ([], "tokens=0"), (range(24), "tokens=24")]
)
def test_tokens_that_are_refused(tokens, value):
    model = tiny.adapter(model=tiny.base(seed=0))
    with pytest.raises(ValueError, match=re.escape(value)):
        WithoutTokens(term=tiny.facts_term(), bank=model.banks[0], tokens=tokens)


def test_models_that_are_refused():
    bank = parts.bank_of(24, 4)
    term = NextTokenLoss(name="t", stream="t", weight=1.0, chunk=8)
    with pytest.raises(ValueError, match="readers=0"):
        WithoutTokens(term=term, bank=bank, tokens=[0]).check(nn.Identity())
    routed = tiny.routed_adapter(model=tiny.base(seed=0), strategy=TokenRouting())
    with pytest.raises(ValueError, match="RoutedMemoryCrossAttention"):
        WithoutTokens(term=term, bank=routed.banks[0], tokens=[0]).check(routed)
