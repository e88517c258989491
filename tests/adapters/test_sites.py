"""Where memory enters, against decoder layers written out by hand."""

import copy

import pytest
import torch

from memtx import Insertion, MemoryAdapter, Site
from tests.adapters.bases import (
    HIDDEN,
    each_architecture,
    each_site,
    insertions_at,
    llama,
    logits,
    tiny_base,
    token_ids,
    working_adapter,
)
from tests.parts import bank_of, randomize, recall, think


def insert(x, insertions, layer, site):
    for insertion in insertions:
        if insertion.layer == layer and insertion.site is site:
            for sublayer in insertion.sublayers:
                x = x + sublayer.sublayer(sublayer.norm(x))
    return x


@torch.no_grad()
def logits_by_hand(base, insertions, ids):
    """Run the base layer by layer, with the sub-layers of `insertions` written into it."""
    model = base.model
    x = model.embed_tokens(ids)
    rotary = model.rotary_emb(x, torch.arange(ids.shape[1]).unsqueeze(0))
    for number, layer in enumerate(model.layers):
        normed = layer.input_layernorm(x)
        x = x + layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
        x = insert(x, insertions, number, Site.AFTER_ATTENTION)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        x = insert(x, insertions, number, Site.AFTER_MLP)
    return base.lm_head(model.norm(x))


def expect_by_hand(base, bank, insertions):
    untouched, ids = copy.deepcopy(base), token_ids(2, 6)
    plain = logits(base, ids)
    torch.testing.assert_close(logits_by_hand(untouched, [], ids), plain, rtol=1e-4, atol=1e-4)
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=insertions).eval()
    randomize(adapter.memory_parameters())
    wanted = logits_by_hand(untouched, insertions, ids)
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(adapter, ids), wanted, rtol=1e-4, atol=1e-4)


@each_architecture
@each_site
def test_site_equals_the_layer_written_by_hand(architecture, site):
    bank = bank_of(7, HIDDEN)
    expect_by_hand(tiny_base(architecture), bank, insertions_at(site, bank))


def test_both_sites_of_all_layers_at_once():
    bank = bank_of(7, HIDDEN)
    insertions = [
        Insertion(layer=layer, site=site, sublayers=[recall(bank, HIDDEN), think(HIDDEN)])
        for layer in (2, 0, 1)
        for site in Site
    ]
    expect_by_hand(llama(), bank, insertions)


def test_sites_are_different_places():
    ids, base = token_ids(2, 6), llama()
    outputs = []
    for site in Site:
        torch.manual_seed(7)
        adapter = working_adapter(base, site)
        outputs.append(logits(adapter, ids))
        adapter.remove()
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layer_is_the_one_said(layer):
    """The hidden states in front of the layer stay; those behind it change."""
    base, bank, ids = llama(), bank_of(7, HIDDEN), token_ids(1, 5)
    plain = base(input_ids=ids, output_hidden_states=True).hidden_states
    insertion = Insertion(layer=layer, site=Site.AFTER_MLP, sublayers=[recall(bank, HIDDEN)])
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=[insertion])
    randomize(adapter.memory_parameters())
    states = adapter(input_ids=ids, output_hidden_states=True).hidden_states
    equal = [torch.equal(one, other) for one, other in zip(states, plain, strict=True)]
    assert equal == [number <= layer for number in range(4)]
