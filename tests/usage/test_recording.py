"""Recording reads: right, from any forward, and without a trace in it."""

import re

import pytest
import torch

from memtx import (
    MemoryBlock,
    MemoryLibrary,
    Site,
    TokenRouting,
)
from memtx.generate import AsProjected, freeze_for_inference
from memtx.ops.memory_read import dense_read_reference
from memtx.ops.routed_read import independent_read_reference, joint_read_reference
from memtx.usage import record_reads, weights
from tests import routing
from tests.adapters.bases import llama, token_ids, working_adapter
from tests.docs.small import attend, stack
from tests.parts import bank_of, random_like, reader, recall, think, zero_linear
from tests.routing import CAUSAL, CHAPTERS, DIM, MIXINGS, STRATEGIES, TOKENS, context

PLACES = [(0, Site.AFTER_ATTENTION), (2, Site.AFTER_MLP)]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
ALL = {"tokens_per_chapter": 3, "kept": 100, "watched": []}


def dense_transformer():
    bank = bank_of(7, DIM)
    layer = MemoryBlock(sublayers=[attend(), recall(bank, DIM), think(DIM)])
    return stack([bank], [layer, layer])


def models(strategy):
    """Dense and routed, composed and in a base."""
    yield dense_transformer()
    yield working_adapter(llama(), Site.AFTER_ATTENTION)
    yield working_adapter(llama(), Site.AFTER_MLP)
    yield routing.transformer(strategy, losses=[])
    yield routing.adapter(llama(), strategy, sites=PLACES, losses=[])


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def spread(reads, count):
    """The kept weights as a weight of every memory token."""
    dense = torch.zeros(*reads.real.shape, count)
    return dense.scatter_add(-1, reads.tokens, reads.weights)


@each_strategy
def test_outputs_are_the_same_to_the_bit_and_no_hook_stays(strategy):
    ids = torch.randint(2, 24, (2, 7))
    for model in models(strategy):
        before, plain = hooks_of(model), model(input_ids=ids, labels=ids)
        with record_reads(model, **ALL) as recording:
            watched = model(input_ids=ids, labels=ids)
        assert hooks_of(model) == before
        assert torch.equal(watched.logits, plain.logits)
        assert torch.equal(watched.loss, plain.loss)
        (passage,) = recording.passages
        assert torch.equal(passage.ids, ids)
        assert len(passage.reads) == 2
        model(input_ids=ids)
        assert len(recording.passages) == 1
        for reads in passage.reads.values():
            torch.testing.assert_close(reads.chapters.sum(-1), torch.ones(2, 7))
            torch.testing.assert_close(reads.weights.sum(-1), torch.ones(2, 7))


@pytest.mark.parametrize("held", [1, 2**23], ids=["in pieces", "whole"])
def test_dense_weights_are_those_of_the_reference_read(held, monkeypatch):
    monkeypatch.setattr(weights, "_HELD", held)
    bank = bank_of(7, DIM)
    read = random_like(reader(bank, DIM))
    x = torch.randn(2, 5, DIM)
    with record_reads(read, tokens_per_chapter=3, kept=7, watched=[6, 0]) as recording:
        read(x)
    reads = recording.passages[0].reads[""]
    # With values that are the numbers of the memory tokens, the reference read is the weights.
    query = read.q_proj(x).unflatten(-1, (4, -1))
    key = read.k_proj(bank()).unflatten(-1, (2, -1))
    value = torch.eye(7)[:, None].expand(7, 2, 7)
    wanted = dense_read_reference(query, key, value).mean(-2)
    torch.testing.assert_close(spread(reads, 7), wanted)
    parts = [wanted[..., :3].sum(-1), wanted[..., 3:6].sum(-1), wanted[..., 6]]
    torch.testing.assert_close(reads.chapters, torch.stack(parts, -1))
    torch.testing.assert_close(reads.watched, wanted[..., [6, 0]])
    assert (reads.weights.diff(dim=-1) <= 0).all()


def as_reference(read, x, chosen, reference):
    """The weights of the reference read: what it gives for values that name the memory tokens."""
    query = read.q_proj(x).unflatten(-1, (4, -1))
    key = read.k_proj(read.bank()).unflatten(-1, (2, -1)).unflatten(0, (CHAPTERS, TOKENS))
    width, count = query.shape[-1], CHAPTERS * TOKENS
    found = []
    for start in range(0, count, width):
        value = torch.eye(count)[:, start : start + width].reshape(CHAPTERS, TOKENS, 1, width)
        choice = (chosen.chapters, chosen.log_weights, chosen.segments)
        found.append(reference(query, key, value.expand(-1, -1, 2, -1), *choice).mean(-2))
    return torch.cat(found, dim=-1)


REFERENCES = {"joint": joint_read_reference, "independent": independent_read_reference}


@pytest.mark.parametrize("held", [1, 2**23], ids=["in pieces", "whole"])
@pytest.mark.parametrize("mixing", MIXINGS)
@each_strategy
def test_routed_weights_are_those_of_the_reference_read(strategy, mixing, held, monkeypatch):
    monkeypatch.setattr(weights, "_HELD", held)
    count = CHAPTERS * TOKENS
    read = random_like(routing.reader(strategy, MIXINGS[mixing], {}))
    x = torch.randn(2, 7, DIM)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    known = {"attention_mask": mask, "labels": routing.labels_from(7, [3, 4])}
    chosen = read.router(x, context(batch=2, length=7, known=known))
    with record_reads(read, tokens_per_chapter=1, kept=100, watched=[0, 35]) as recording:
        read(x, context(batch=2, length=7, known=known))
    reads = recording.passages[0].reads[""]
    # Where each token chooses for itself padding is read too, and thrown away.
    wanted = as_reference(read, x, chosen, REFERENCES[mixing]) * mask[..., None]
    torch.testing.assert_close(spread(reads, count), wanted)
    torch.testing.assert_close(reads.chapters, wanted.unflatten(-1, (CHAPTERS, TOKENS)).sum(-1))
    torch.testing.assert_close(reads.watched, wanted[..., [0, 35]])
    assert torch.equal(reads.real, mask.bool())
    assert not reads.chapters[~reads.real].any()
    assert reads.tokens_per_chapter == TOKENS


@pytest.mark.parametrize("name", CAUSAL)
def test_a_cached_generation_is_one_passage_and_reads_as_one_forward_does(name):
    ids = token_ids(2, 5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    for model in models(CAUSAL[name]):
        ids = ids % 22 + 2
        plain = model.generate(input_ids=ids, attention_mask=mask, **options)
        with record_reads(model, **ALL) as cached:
            out = model.generate(input_ids=ids, attention_mask=mask, **options)
        assert torch.equal(out, plain)
        whole = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
        labels = torch.where(torch.arange(10) < 5, -100, out[:, :-1])
        positions = (whole.cumsum(-1) - 1).clamp(min=0)
        with record_reads(model, **ALL) as full, torch.no_grad():
            model(
                input_ids=out[:, :-1], attention_mask=whole, labels=labels, position_ids=positions
            )
        (one,), (other,) = cached.passages, full.passages
        assert torch.equal(one.ids, out[:, :-1])
        assert list(one.reads) == list(other.reads)
        for key, reads in one.reads.items():
            assert torch.equal(reads.real, whole.bool())
            torch.testing.assert_close(reads.chapters, other.reads[key].chapters)


def test_two_texts_are_two_passages_and_a_cut_cache_is_followed():
    from transformers import DynamicCache

    adapter = working_adapter(llama(), Site.AFTER_MLP)
    ids, cache = token_ids(1, 6), DynamicCache()
    with record_reads(adapter, **ALL) as recording, torch.no_grad():
        adapter(input_ids=ids)
        adapter(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)
        cache.crop(-2)
        adapter(input_ids=ids[:, 2:], past_key_values=cache, use_cache=True)
    one, other = recording.passages
    assert torch.equal(one.ids, other.ids)
    for key, reads in one.reads.items():
        torch.testing.assert_close(other.reads[key].chapters, reads.chapters)


def test_a_cache_that_was_filled_before_is_said_to_be():
    from transformers import DynamicCache

    model, cache = dense_transformer(), DynamicCache()
    ids = torch.randint(0, 24, (1, 6))
    with torch.no_grad():
        model(input_ids=ids[:, :4], past_key_values=cache)
        with record_reads(model, **ALL) as recording:
            model(input_ids=ids[:, 4:], past_key_values=cache)
    (passage,) = recording.passages
    assert passage.start == 4
    assert [reads.real.shape for reads in passage.reads.values()] == [(1, 2), (1, 2)]


def test_a_memory_switched_off_on_the_way_parts_two_passages():
    from transformers import DynamicCache

    adapter, cache = working_adapter(llama(), Site.AFTER_MLP), DynamicCache()
    ids = token_ids(1, 6)
    with record_reads(adapter, **ALL) as recording, torch.no_grad():
        adapter(input_ids=ids[:, :2], past_key_values=cache, use_cache=True)
        with adapter.disabled():
            adapter(input_ids=ids[:, 2:4], past_key_values=cache, use_cache=True)
        adapter(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True)
    assert [(each.start, each.ids.tolist()) for each in recording.passages] == [
        (0, ids[:, :2].tolist()),
        (4, ids[:, 4:].tolist()),
    ]


def test_a_layer_that_stands_twice_reads_twice():
    model = dense_transformer()
    with record_reads(model, **ALL) as recording:
        model(input_ids=torch.zeros(1, 3, dtype=torch.long))
    first, second = recording.passages[0].reads.items()
    assert second[0] == f"{first[0]} (call 2)"
    assert not torch.equal(first[1].chapters, second[1].chapters)


def test_vectors_in_place_of_tokens_and_calls_by_name():
    model = dense_transformer()
    with record_reads(model, **ALL) as recording:
        model(inputs_embeds=torch.randn(2, 3, DIM))
    assert recording.passages[0].ids is None
    read = random_like(reader(bank_of(7, DIM), DIM))
    with record_reads(read, **ALL) as recording:
        read(x=torch.randn(2, 3, DIM), context=None)
        read(torch.randn(1, 4, DIM))
    assert [p.reads[""].real.shape for p in recording.passages] == [(2, 3), (1, 4)]


def test_a_recomputed_layer_counts_once_and_gradients_stay():
    ids, found = token_ids(2, 6), []
    adapter = routing.adapter(llama(), TokenRouting(), sites=PLACES, losses=[]).train()
    adapter.gradient_checkpointing_enable()
    for watched in (False, True):
        adapter.zero_grad()
        if watched:
            with record_reads(adapter, **ALL) as recording:
                adapter(input_ids=ids, labels=ids).loss.backward()
        else:
            adapter(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in adapter.memory_parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    (passage,) = recording.passages
    assert list(passage.reads) == [
        f"insertions.{number}.sublayers.0.sublayer" for number in range(2)
    ]


def test_a_frozen_memory_is_recorded_as_it_is_read():
    ids = torch.randint(2, 24, (2, 7))
    for model in models(TokenRouting()):
        with record_reads(model, **ALL) as recording:
            model(input_ids=ids)
        with freeze_for_inference(model.eval(), storage=AsProjected()), torch.no_grad():
            plain = model(input_ids=ids).logits
            with record_reads(model, **ALL) as frozen:
                assert torch.equal(model(input_ids=ids).logits, plain)
        for key, reads in recording.passages[0].reads.items():
            torch.testing.assert_close(frozen.passages[0].reads[key].chapters, reads.chapters)


def test_an_error_inside_takes_the_hooks_out():
    model = dense_transformer()
    with pytest.raises(KeyError), record_reads(model, **ALL):
        raise KeyError
    assert not any(hooks_of(model))


class Other:
    def __call__(self, *, query, key, value, choice, log_weight, segments, dropout):
        return query


def test_what_cannot_be_recorded_is_refused():
    def refused(model, changes, message):
        with (
            pytest.raises(ValueError, match=re.escape(message)),
            record_reads(model, **(ALL | changes)),
        ):
            model(torch.zeros(1, 2, DIM))

    read = reader(bank_of(7, DIM), DIM)
    refused(
        zero_linear(2, 2),
        {},
        "record_reads: the model must have a memory reader in it, got "
        "model='Linear'; pass a model with MemoryCrossAttention or",
    )
    refused(read, {"kept": 0}, "record_reads: kept must be an integer of at least 1, got kept=0;")
    refused(read, {"watched": [6, 7]}, "from 0 to 6, got watched=[7]; watch tokens that exist.")
    refused(MemoryLibrary(base=llama(), memories={}), {}, "got model='MemoryLibrary'; put the")
    strange = routing.reader(TokenRouting(), Other(), {})
    refused(
        strange,
        {},
        "record_reads: the mixing must be one of IndependentSoftmax, JointSoftmax,"
        " got mixing='Other'; record a reader whose",
    )
