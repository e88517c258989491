"""Routed memory inside a frozen model: cached, padded, packed, recomputed and switched."""

import copy
import re

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM, Qwen2ForCausalLM

from memtx import RollingRouting, SequenceRouting, Site, TokenRouting
from tests import routing
from tests.adapters.bases import (
    VOCABULARY,
    llama,
    logits,
    tiny_base,
    token_ids,
    working_adapter,
)
from tests.adapters.libraries import library_of, routed
from tests.routing import CAUSAL, STRATEGIES, WITH_PROMPT

PLACES = [(0, Site.AFTER_ATTENTION), (1, Site.AFTER_MLP), (2, Site.AFTER_ATTENTION)]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
START, LENGTH = 5, 13
each_base = pytest.mark.parametrize(
    "base", [LlamaForCausalLM, Qwen2ForCausalLM], ids=lambda cls: cls.__name__
)
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
each_causal = pytest.mark.parametrize("strategy", CAUSAL.values(), ids=CAUSAL)


def adapter_of(base, strategy):
    return routing.adapter(base, strategy, sites=PLACES, losses=[])


def left_padded(length):
    """Two rows of tokens, the first with padding in front, and their mask."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :3] = 0
    return token_ids(2, length) * mask, mask


def positions_of(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def whole(adapter, ids, mask, *, start):
    """The logits of one forward, in which the prompt ends at `start`."""
    labels = torch.where(torch.arange(ids.shape[1]) < start, -100, ids)
    return adapter(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask),
        labels=labels,
        use_cache=False,
    ).logits


@torch.no_grad()
def in_steps(adapter, ids, mask, cache, *, ends):
    """The logits of calls that end at the given places, on one cache."""
    parts, start, positions = [], 0, positions_of(mask)
    for end in ends:
        out = adapter(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        start, cache = end, out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, dim=1), cache


@each_base
@each_strategy
def test_a_fresh_memory_leaves_the_logits_bit_equal(base, strategy):
    model, ids = tiny_base(base), token_ids(2, 9)
    plain = logits(model, ids)
    adapter = adapter_of(model, strategy)
    for insertion in adapter.insertions:
        torch.nn.init.zeros_(insertion.sublayers[0].sublayer.o_proj.weight)
    assert torch.equal(logits(adapter, ids), plain)
    adapter = adapter_of(adapter.remove(), strategy)
    assert not torch.equal(logits(adapter, ids), plain)
    with adapter.disabled():
        assert torch.equal(logits(adapter, ids), plain)


@each_base
@each_causal
@pytest.mark.parametrize("made_by", ["base", "caller"])
def test_cached_calls_equal_one_forward(base, strategy, made_by):
    adapter = adapter_of(tiny_base(base), strategy)
    ids, mask = left_padded(LENGTH)
    wanted = whole(adapter, ids, mask, start=START)
    for ends in ([*range(START, LENGTH + 1)], [START, 8, 9, LENGTH]):
        cache = DynamicCache() if made_by == "caller" else None
        given, cache = in_steps(adapter, ids, mask, cache, ends=ends)
        torch.testing.assert_close(given[mask.bool()], wanted[mask.bool()], **CLOSE)
        assert cache.get_seq_length() == LENGTH


OPTIONS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams of each": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled of each": {"do_sample": True, "num_return_sequences": 3},
}


def generated(adapter, ids, mask, options):
    torch.manual_seed(3)
    return adapter.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, **options)


@each_causal
@pytest.mark.parametrize("option", OPTIONS)
def test_cached_generation_equals_full_forwards(strategy, option):
    """Without a cache only labels tell the prompt, so prompt strategies are checked after."""
    adapter, (ids, mask) = adapter_of(llama(), strategy), left_padded(START)
    out = generated(
        adapter,
        ids,
        mask,
        {**OPTIONS[option], "output_logits": True, "return_dict_in_generate": True},
    )
    if strategy not in [CAUSAL[name] for name in WITH_PROMPT]:
        plain = generated(adapter, ids, mask, {**OPTIONS[option], "use_cache": False})
        assert torch.equal(out.sequences, plain)
    if option in ("greedy", "sampled of each"):
        rows = out.sequences.shape[0] // 2
        real = mask.repeat_interleave(rows, dim=0)
        real = torch.cat([real, torch.ones(2 * rows, 8, dtype=torch.long)], dim=1)
        full = whole(adapter, out.sequences, real, start=START)[:, START - 1 : -1]
        torch.testing.assert_close(torch.stack(out.logits, dim=1), full, **CLOSE)


@each_causal
def test_left_padded_rows_generate_what_they_generate_alone(strategy):
    adapter, (ids, mask) = adapter_of(llama(), strategy), left_padded(7)
    together = generated(adapter, ids, mask, {"do_sample": False})[:, 7:]
    for row in range(2):
        own = ids[row : row + 1, mask[row].bool()]
        alone = generated(adapter, own, torch.ones_like(own), {"do_sample": False})
        assert torch.equal(alone[0, own.shape[1] :], together[row])


@each_causal
def test_the_cache_follows_beams_repetition_and_cuts(strategy):
    adapter, (ids, mask) = adapter_of(llama(), strategy), left_padded(LENGTH)
    wanted = whole(adapter, ids, mask, start=START)[:, 9:]
    # Too far, with other tokens, and cut back, as assisted generation does.
    other = ids.clone()
    other[:, 7:] = token_ids(2, LENGTH - 7)
    _, cache = in_steps(adapter, other, mask, None, ends=[START, LENGTH])
    cache.crop(7 - LENGTH)
    _, cache = continued(adapter, ids, mask, cache, start=7, end=9)
    for order in ([0, 1], [1, 0], [1, 1]):
        turned = copy.deepcopy(cache)
        turned.reorder_cache(torch.tensor(order))
        given, _ = continued(adapter, ids[order], mask[order], turned, start=9, end=LENGTH)
        torch.testing.assert_close(given, wanted[order], **CLOSE)
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    rows = [0, 0, 1, 1]
    given, _ = continued(adapter, ids[rows], mask[rows], repeated, start=9, end=LENGTH)
    torch.testing.assert_close(given, wanted[rows], **CLOSE)


@torch.no_grad()
def continued(adapter, ids, mask, cache, *, start, end):
    out = adapter(
        input_ids=ids[:, start:end],
        attention_mask=mask[:, :end],
        position_ids=positions_of(mask)[:, start:end],
        past_key_values=cache,
        use_cache=True,
    )
    return out.logits, out.past_key_values


@each_causal
def test_assisted_generation_is_greedy_generation(strategy):
    adapter, ids = adapter_of(llama(), strategy), token_ids(1, START)
    mask = torch.ones_like(ids)
    wanted = generated(adapter, ids, mask, {"do_sample": False})
    # Looks for tokens to propose in the prompt and cuts back the cache where they are wrong.
    ids[:, 3:] = ids[:, :2]
    wanted = generated(adapter, ids, mask, {"do_sample": False})
    given = generated(adapter, ids, mask, {"do_sample": False, "prompt_lookup_num_tokens": 3})
    assert torch.equal(given, wanted)


def test_sequence_routing_is_refused_in_cached_generation():
    adapter, ids = adapter_of(llama(), SequenceRouting()), token_ids(1, 4)
    message = (
        "SequenceRouting: cached generation must not be asked of it: each new token would change "
        "the chapters that the tokens in the cache have read, so the result would not be that of "
        "one full forward, got tokens in the cache=4, is_causal=False; pass use_cache=False, or "
        "use PromptRouting, RollingRouting or TokenRouting."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        generated(adapter, ids, torch.ones_like(ids), {"do_sample": False})
    out = generated(adapter, ids, torch.ones_like(ids), {"do_sample": False, "use_cache": False})
    assert out.shape == (1, 12)


def test_a_memory_switched_on_amid_a_cache_is_refused():
    adapter, ids = adapter_of(llama(), RollingRouting(window=3)), token_ids(1, 6)
    mask = torch.ones_like(ids)
    with adapter.disabled():
        _, cache = in_steps(adapter, ids, mask, None, ends=[4])
    message = (
        "Context: the cache must have been filled with the memory on, from its first token, got "
        "tokens in the cache=6, remembered by the memory=2; start with an empty cache, and switch "
        "the memory on before the first call."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        continued(adapter, ids, mask, cache, start=4, end=6)
    # What remembers nothing has nothing to miss.
    adapter = adapter_of(adapter.remove(), TokenRouting())
    with adapter.disabled():
        _, cache = in_steps(adapter, ids, mask, None, ends=[4])
    continued(adapter, ids, mask, cache, start=4, end=6)


@each_base
@each_causal
@pytest.mark.parametrize("option", ["greedy", "beams"])
def test_a_cache_of_fixed_size_generates_the_same(base, strategy, option):
    adapter, (ids, mask) = adapter_of(tiny_base(base), strategy), left_padded(START)
    wanted = generated(adapter, ids, mask, OPTIONS[option])
    static = OPTIONS[option] | {"cache_implementation": "static"}
    assert torch.equal(generated(adapter, ids, mask, static), wanted)
    # And again: the base keeps the cache, and empties it.
    assert torch.equal(generated(adapter, ids, mask, static), wanted)


def test_two_adapters_remember_apart():
    base, (ids, mask) = llama(), left_padded(START)
    first, second = (
        routing.adapter(base, RollingRouting(window=window), sites=[place], losses=[])
        for window, place in ((3, PLACES[0]), (2, PLACES[1]))
    )
    wanted = generated(base, ids, mask, {"do_sample": False, "use_cache": False})
    assert torch.equal(generated(base, ids, mask, {"do_sample": False}), wanted)
    with first.disabled():
        wanted = generated(base, ids, mask, {"do_sample": False, "use_cache": False})
        assert torch.equal(generated(base, ids, mask, {"do_sample": False}), wanted)
    first.remove()
    assert torch.equal(generated(second, ids, mask, {"do_sample": False}), wanted)


def test_a_memory_that_remembers_nothing_frees_nobody_elses_place_in_a_cache():
    base, (ids, mask) = llama(), left_padded(START)
    first = routing.adapter(base, RollingRouting(window=3), sites=PLACES[:1], losses=[])
    working_adapter(base, Site.AFTER_MLP).remove()
    second = routing.adapter(base, RollingRouting(window=2), sites=PLACES[1:2], losses=[])
    wanted = generated(base, ids, mask, {"do_sample": False, "use_cache": False})
    assert torch.equal(generated(base, ids, mask, {"do_sample": False}), wanted)
    second.remove()
    first.remove()


@pytest.mark.parametrize("strategy", [CAUSAL[name] for name in WITH_PROMPT], ids=WITH_PROMPT)
@pytest.mark.parametrize("holder", ["adapter", "library"])
def test_a_generation_that_cannot_tell_the_prompt_is_refused(strategy, holder):
    model = {
        "adapter": lambda: adapter_of(llama(), strategy),
        "library": lambda: library_of({"anna": routed(strategy, [])}),
    }[holder]()
    ids = token_ids(1, 4)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 2, "pad_token_id": 0}
    if holder == "library":
        with_none = model.generate(ids, use_cache=False, do_sample=False, **options)
        assert with_none.shape == (1, 6)
        model.activate("anna")
    for wrong, rule in (
        ({"use_cache": False}, "must generate with a cache, which tells the prompt from what was "),
        ({"prefill_chunk_size": 2}, "must read it in one call: what comes later counts as "),
    ):
        config = GenerationConfig(**wrong)
        (name, value) = next(iter(wrong.items()))
        message = (
            f"{type(model).__name__}: a model whose routers choose from the prompt {rule}generated,"
            f" got {name}={value}, strategies=[{strategy}]; "
        )
        for given in (wrong, {"generation_config": config}):
            with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
                model.generate(ids, **given, **options)
        if holder == "adapter":
            with model.disabled():
                assert model.generate(ids, **wrong, **options).shape == (1, 6)


@each_strategy
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(strategy, side):
    adapter, ids = adapter_of(llama(), strategy), token_ids(1, 7)
    alone = whole(adapter, ids, torch.ones_like(ids), start=4)
    at, start = (slice(4, 11), 8) if side == "left" else (slice(0, 7), 4)
    wide, mask = torch.zeros(1, 11, dtype=torch.long), torch.zeros(1, 11, dtype=torch.long)
    wide[:, at], mask[:, at] = ids, 1
    given = whole(adapter, wide, mask, start=start)[:, at]
    torch.testing.assert_close(given, alone, **CLOSE)


@each_strategy
def test_packed_documents_equal_separate_ones(strategy):
    adapter = adapter_of(llama(), strategy)
    rows = [token_ids(1, length) for length in (5, 7)]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with torch.no_grad():
        apart = [adapter(input_ids=row, use_cache=False).logits for row in rows]
        packed = adapter(
            input_ids=torch.cat(rows, dim=1), position_ids=positions, use_cache=False
        ).logits
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), **CLOSE)


def test_packed_documents_are_refused_where_a_cache_would_mix_them():
    adapter, ids = adapter_of(llama(), TokenRouting()), token_ids(1, 4)
    with pytest.raises(ValueError, match="got position_ids='starting again within a row'"):
        adapter(input_ids=ids, position_ids=torch.tensor([[0, 1, 0, 1]]))


def test_a_copy_made_after_a_forward_reads_for_itself():
    adapter, ids = adapter_of(llama(), RollingRouting(window=3)), token_ids(2, 7)
    before = adapter(input_ids=ids, labels=ids).logits.detach()
    twin = copy.deepcopy(adapter)
    assert torch.equal(logits(twin, ids), before)
    with torch.no_grad():
        twin.banks[0].tokens.add_(1.0)
    assert not torch.equal(logits(twin, ids), before)
    assert torch.equal(logits(adapter, ids), before)
    # Rows of another length: the copy must not go by the other's tokens.
    longer = token_ids(3, 9)
    assert logits(twin, longer).shape == (3, 9, VOCABULARY)
