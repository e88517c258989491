"""An adapter on every architecture and site: switchable, reversible, exact."""

import copy

import pytest
import torch

from memtx import Insertion, MemoryAdapter, Site
from tests.adapters.bases import (
    HIDDEN,
    each_architecture,
    each_site,
    expect_same,
    fresh_adapter,
    insertions_at,
    llama,
    logits,
    state_of,
    tiny_base,
    token_ids,
    working_adapter,
)
from tests.parts import bank_of, randomize, recall, think

IDS = torch.arange(2, 14).view(2, 6)


@pytest.mark.shapes
@each_architecture
@each_site
def test_logits_of_fresh_perturbed_and_disabled_memory(architecture, site):
    base = tiny_base(architecture)
    wanted = logits(base, IDS)
    adapter = fresh_adapter(base, site)
    assert torch.equal(logits(adapter, IDS), wanted)
    randomize(adapter.memory_parameters())
    changed = logits(adapter, IDS)
    assert (changed - wanted).abs().max() > 0.1
    with adapter.disabled():
        assert not adapter.is_enabled()
        assert torch.equal(logits(adapter, IDS), wanted)
    assert adapter.is_enabled()
    assert torch.equal(logits(adapter, IDS), changed)


@each_architecture
@each_site
def test_remove_restores_everything(architecture, site):
    base = tiny_base(architecture)
    base.lm_head.weight.requires_grad_(False)  # flags that differ must come back different
    before, wanted = state_of(base), logits(base, IDS)
    adapter = working_adapter(base, site)
    logits(adapter, IDS)
    assert state_of(base).hooks != before.hooks
    assert not any(state_of(base).flags.values())
    assert adapter.remove() is base
    expect_same(state_of(base), before)
    assert torch.equal(logits(base, IDS), wanted)


def test_remove_twice_is_remove_once():
    base = llama()
    adapter = working_adapter(base, Site.AFTER_MLP)
    adapter.remove()
    base.requires_grad_(False)
    adapter.remove()
    assert not any(p.requires_grad for p in base.parameters())


def test_disabled_survives_an_error_and_nests():
    adapter = working_adapter(llama(), Site.AFTER_ATTENTION)
    wanted = logits(adapter, IDS)
    with pytest.raises(RuntimeError, match="stop"), adapter.disabled():
        raise RuntimeError("stop")
    with adapter.disabled():
        with adapter.disabled():
            pass
        assert not adapter.is_enabled()
    assert torch.equal(logits(adapter, IDS), wanted)


@each_site
def test_an_error_inside_a_layer_leaves_nothing_behind(site):
    base = llama()
    plain = logits(base, IDS)
    adapter = working_adapter(base, site)
    wanted = logits(adapter, IDS)

    def stop(module, inputs):
        raise RuntimeError("stop")

    handle = adapter.base.model.layers[0].mlp.up_proj.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        logits(adapter, IDS)
    handle.remove()
    with adapter.disabled():
        assert torch.equal(logits(adapter, IDS), plain)
    assert torch.equal(logits(adapter, IDS), wanted)


@each_site
def test_two_adapters_add_up_and_come_off_independently(site):
    base = llama()
    plain = logits(base, IDS)
    first, second = working_adapter(base, site), working_adapter(base, site)
    both = logits(base, IDS)
    with second.disabled():
        only_first = logits(base, IDS)
    with first.disabled():
        only_second = logits(base, IDS)
        with second.disabled():
            assert torch.equal(logits(base, IDS), plain)
    for one, other in ((both, only_first), (both, only_second), (only_first, only_second)):
        assert (one - other).abs().max() > 0.1
    first.remove()
    assert torch.equal(logits(base, IDS), only_second)
    second.remove()
    assert torch.equal(logits(base, IDS), plain)


@each_site
def test_of_two_adapters_the_later_reads_first(site):
    """Two at one place equal one adapter that lists the sub-layers of both there."""
    base, bank = llama(), bank_of(7, HIDDEN)
    parts = [recall(bank, HIDDEN), think(HIDDEN)]
    for part in parts:
        randomize(part.parameters())
    lists = [parts, parts[:1], parts[1:]]
    together, reading, thinking = (
        [Insertion(layer=1, site=site, sublayers=each)] for each in lists
    )
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=together)
    wanted = logits(adapter, IDS)
    adapter.remove()
    MemoryAdapter(base=base, banks=[], insertions=thinking)
    MemoryAdapter(base=base, banks=[bank], insertions=reading)
    torch.testing.assert_close(logits(base, IDS), wanted, rtol=1e-4, atol=1e-4)


@each_site
def test_deep_copy_is_independent(site):
    adapter = working_adapter(llama(), site)
    wanted = logits(adapter, IDS)
    other = copy.deepcopy(adapter)
    assert torch.equal(logits(other, IDS), wanted)
    randomize(other.memory_parameters())
    changed = logits(other, IDS)
    assert (changed - wanted).abs().max() > 0.1
    assert torch.equal(logits(adapter, IDS), wanted)
    with adapter.disabled():
        assert torch.equal(logits(other, IDS), changed)
        plain = logits(adapter, IDS)
    assert torch.equal(logits(other.remove(), IDS), plain)
    assert torch.equal(logits(adapter, IDS), wanted)
    with torch.no_grad():
        adapter.base.lm_head.weight.zero_()
    assert torch.equal(logits(other, IDS), plain)


@each_site
def test_float32_memory_on_bfloat16_base(site):
    base = llama().to(torch.bfloat16)
    plain = logits(base, IDS)
    adapter = fresh_adapter(base, site)
    assert torch.equal(logits(adapter, IDS), plain)
    randomize(adapter.memory_parameters())
    out = adapter(input_ids=IDS, labels=IDS)
    assert out.logits.dtype == torch.bfloat16
    assert (out.logits - plain).abs().max() > 0.1
    out.loss.backward()
    for name, parameter in adapter.named_memory_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0, name


def test_memory_parameters_are_each_once():
    base, bank = llama(), bank_of(7, HIDDEN)
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=insertions_at(Site.AFTER_MLP, bank))
    names = dict(adapter.named_memory_parameters())
    assert [name for name in names if "bank" in name] == ["banks.0.tokens"]
    assert names["banks.0.tokens"] is bank.tokens
    ours = {id(p) for p in adapter.memory_parameters()}
    bases = {id(p) for p in base.parameters()}
    assert ours | bases == {id(p) for p in adapter.parameters()}
    assert not ours & bases
    assert len(ours) == len(list(adapter.memory_parameters())) == len(names)


def test_answers_as_the_base_does():
    base = llama()
    adapter = fresh_adapter(base, Site.AFTER_MLP)
    assert adapter.config is base.config
    assert adapter.device == torch.device("cpu")
    out = adapter(input_ids=IDS, output_hidden_states=True)
    assert type(out) is type(base(input_ids=IDS))
    assert len(out.hidden_states) == 4
    embedded = base.get_input_embeddings()(IDS)
    assert torch.equal(adapter(inputs_embeds=embedded).logits, out.logits)
    assert adapter(input_ids=IDS).loss is None
    loss = adapter(input_ids=IDS, labels=IDS).loss
    wanted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].ravel())
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, wanted)


def test_positions_reach_the_base():
    adapter = working_adapter(llama(), Site.AFTER_MLP)
    positions = torch.tensor([0, 1, 2, 7, 8, 9]).expand(2, -1)
    with torch.no_grad():
        moved = adapter(input_ids=IDS, position_ids=positions).logits
    assert (moved - logits(adapter, IDS)).abs().max() > 1e-3


def test_logits_do_not_see_the_future():
    adapter, ids = working_adapter(llama(), Site.AFTER_ATTENTION), token_ids(2, 6)
    whole = logits(adapter, ids)
    torch.testing.assert_close(logits(adapter, ids[:, :4]), whole[:, :4], rtol=1e-4, atol=1e-4)


def test_the_base_stays_frozen_until_the_last_adapter_is_removed():
    base = llama()
    before = state_of(base)
    first, second = (fresh_adapter(base, Site.AFTER_MLP) for _ in range(2))
    first.remove()
    assert not any(parameter.requires_grad for parameter in base.parameters())
    second.remove()
    expect_same(state_of(base), before)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_remove_switches_checkpointing_off(use_reentrant):
    base = llama()
    before = state_of(base)
    adapter = fresh_adapter(base, Site.AFTER_MLP)
    adapter.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert base.model.layers[0].gradient_checkpointing
    adapter.remove()
    assert not base.model.layers[0].gradient_checkpointing
    after = state_of(base)
    # What transformers notes down of a switched-off checkpointing stays; nothing that acts does.
    assert (after.hooks, after.flags, after.modules) == (before.hooks, before.flags, before.modules)


@pytest.mark.parametrize("training", [False, True])
def test_a_new_adapter_takes_the_mode_of_its_base(training):
    base = llama().train(training)
    bank = bank_of(7, HIDDEN)
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=insertions_at(Site.AFTER_MLP, bank))
    assert {module.training for module in adapter.modules()} == {training}
