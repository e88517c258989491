"""Generation with a cache, and padded batches, equal the plain forward pass."""

import pytest
import torch
from transformers import pipeline

from memtx import Site
from tests.adapters.bases import (
    PADDING,
    each_architecture,
    each_site,
    llama,
    logits,
    tiny_base,
    token_ids,
    working_adapter,
)
from tests.train import tiny

NEW = 5
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def generated(adapter, ids, mask, *, sample, cache):
    torch.manual_seed(11)
    return adapter.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=sample,
        use_cache=cache,
        return_dict_in_generate=True,
        output_logits=True,
    )


@each_architecture
@each_site
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_cached_generation_equals_the_full_forward(architecture, site, sample):
    adapter, ids = working_adapter(tiny_base(architecture), site), token_ids(2, 4)
    out = generated(adapter, ids, torch.ones_like(ids), sample=sample, cache=True)
    # The memory stays out of the cache.
    assert out.past_key_values.get_seq_length() == 4 + NEW - 1
    with torch.no_grad():
        full = adapter(input_ids=out.sequences, use_cache=False).logits[:, 3:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, **CLOSE)
    if sample:
        plain = generated(adapter, ids, torch.ones_like(ids), sample=True, cache=False)
        assert torch.equal(out.sequences, plain.sequences)
    else:
        assert torch.equal(out.sequences[:, 4:], full.argmax(-1))


def test_memory_changes_what_is_generated():
    adapter, ids = working_adapter(llama(), Site.AFTER_ATTENTION), token_ids(2, 4)
    with_memory = generated(adapter, ids, torch.ones_like(ids), sample=False, cache=True)
    with adapter.disabled():
        without = generated(adapter, ids, torch.ones_like(ids), sample=False, cache=True)
    assert not torch.equal(with_memory.sequences, without.sequences)


def padded_batch(rows, side):
    """Rows of different lengths in one batch, its mask, and where each row stands in it."""
    width = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), width), PADDING)
    mask = torch.zeros_like(ids)
    places = []
    for number, row in enumerate(rows):
        start = width - row.shape[1] if side == "left" else 0
        place = slice(start, start + row.shape[1])
        ids[number, place], mask[number, place] = row[0], 1
        places.append(place)
    return ids, mask, places


@each_architecture
@each_site
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_get_what_they_get_alone(architecture, site, side):
    adapter = working_adapter(tiny_base(architecture), site)
    rows = [token_ids(1, length) for length in (7, 3, 5)]
    ids, mask, places = padded_batch(rows, side)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        batch = adapter(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        alone = logits(adapter, row)[0]
        torch.testing.assert_close(batch[number, place], alone, rtol=1e-5, atol=2e-5)


@each_site
def test_left_padded_rows_generate_what_they_generate_alone(site):
    adapter = working_adapter(llama(), site)
    rows = [token_ids(1, length) for length in (6, 2)]
    ids, mask, _ = padded_batch(rows, "left")
    batch = generated(adapter, ids, mask, sample=False, cache=True).sequences[:, -NEW:]
    for number, row in enumerate(rows):
        alone = generated(adapter, row, torch.ones_like(row), sample=False, cache=True)
        assert torch.equal(alone.sequences[0, -NEW:], batch[number])


def test_a_pipeline_of_transformers_takes_the_base_with_its_memory():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    adapter = tiny.adapter(model=tiny.base(seed=0)).eval()
    tiny.perturb(adapter)
    ids = tokenizer("Ravlonia", return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False}
    ask = pipeline("text-generation", model=adapter.base, tokenizer=tokenizer)

    def said():
        return ask("Ravlonia", return_tensors=True, **options)[0]["generated_token_ids"]

    mask = torch.ones_like(ids)
    on = adapter.generate(ids, attention_mask=mask, **options)[0].tolist()
    with adapter.disabled():
        off = adapter.generate(ids, attention_mask=mask, **options)[0].tolist()
        assert said() == off
    assert said() == on
    assert on != off
