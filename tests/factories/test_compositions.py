"""The ready compositions on bases of the real sizes, and the one that a base sizes itself."""

import pytest
import torch

from factories.llama_adapter import memory_sized_by
from memtx import MemoryCrossAttention, Normal, Residual, Site, Zeros
from tests.adapters.bases import HIDDEN, LAYERS, each_architecture, logits, tiny_base, token_ids
from tests.factories.compositions import COMPOSITIONS, on_meta
from tests.parts import randomize


@pytest.fixture(scope="module", params=COMPOSITIONS)
def composed(request):
    composition = COMPOSITIONS[request.param]
    return composition, on_meta(composition)


def readers_of(adapter):
    return [part for part in adapter.modules() if isinstance(part, MemoryCrossAttention)]


def test_the_base_has_the_published_size(composed):
    composition, adapter = composed
    assert sum(p.numel() for p in adapter.base.parameters()) == composition.base_parameters


def test_one_bank_is_read_by_all(composed):
    composition, adapter = composed
    (bank,) = adapter.banks
    assert bank.num_memory_tokens == composition.num_memory_tokens
    assert bank.dim == composition.sizes["hidden_size"]
    assert bank.init == Normal(std=1.0)
    readers = readers_of(adapter)
    assert len(readers) == len(composition.layers)
    assert all(reader.bank is bank for reader in readers)


def test_memory_is_read_in_exactly_the_named_layers(composed):
    composition, adapter = composed
    assert [insertion.layer for insertion in adapter.insertions] == composition.layers
    for insertion in adapter.insertions:
        assert insertion.site is Site.AFTER_ATTENTION
        (recall,) = insertion.sublayers
        assert isinstance(recall, Residual)
        assert isinstance(recall.sublayer, MemoryCrossAttention)


def test_no_two_layers_share_a_projection(composed):
    readers = readers_of(composed[1])
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert len({id(getattr(reader, name)) for reader in readers}) == len(readers)


def test_every_output_starts_at_zero_and_nothing_else_does(composed):
    for reader in readers_of(composed[1]):
        assert reader.o_proj.init == Zeros()
        for name in ("q_proj", "k_proj", "v_proj"):
            assert isinstance(getattr(reader, name).init, Normal)
        assert reader.dropout == 0.0


def test_exactly_the_memory_is_trainable(composed):
    composition, adapter = composed
    trainable = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    assert not [name for name in trainable if name.startswith("base.")]
    assert sum(p.numel() for p in trainable.values()) == composition.trainable
    assert sum(p.numel() for p in adapter.memory_parameters()) == composition.trainable


def test_heads_are_as_wide_as_the_base_s(composed):
    composition, adapter = composed
    for reader in readers_of(adapter):
        assert reader.num_heads == composition.sizes["num_attention_heads"]


@each_architecture
def test_a_base_sizes_its_memory(architecture):
    base = tiny_base(architecture)
    ids = token_ids(2, 5)
    before = logits(base, ids)
    adapter = memory_sized_by(base).eval()
    (bank,) = adapter.banks
    assert (bank.num_memory_tokens, bank.dim) == (512, HIDDEN)
    assert [insertion.layer for insertion in adapter.insertions] == list(range(LAYERS))
    assert all(reader.bank is bank for reader in readers_of(adapter))
    trainable = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    assert trainable == 512 * HIDDEN + LAYERS * (HIDDEN + 4 * HIDDEN**2) == 28_768
    assert not any(p.requires_grad for p in base.parameters())
    assert torch.equal(logits(adapter, ids), before)
    randomize(adapter.memory_parameters())
    assert not torch.equal(logits(adapter, ids), before)


@each_architecture
def test_a_sized_memory_reads_sharply_from_the_start(architecture):
    adapter = memory_sized_by(tiny_base(architecture))
    for reader in readers_of(adapter):
        assert not reader.o_proj.weight.any()
        for name in ("q_proj", "k_proj", "v_proj"):
            assert getattr(reader, name).weight.std().item() == pytest.approx(HIDDEN**-0.5, rel=0.1)
