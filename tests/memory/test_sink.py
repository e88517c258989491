"""Empty memory tokens: what they leave, what is kept of them, and what reads them."""

import re

import pytest
import torch

from memtx import (
    MemoryCrossAttention,
    OffloadedMemoryBank,
    SinkMemoryBank,
    Site,
    describe,
    load_adapter,
    save,
)
from memtx.generate import AsProjected, freeze_for_inference
from memtx.spec import build
from memtx.usage import delete_chapters, record_reads, without_chapters
from tests.adapters.bases import llama, working_adapter
from tests.parts import bank_of, random_like, read_arguments

DIM = 8


def sinks(num_sinks):
    return SinkMemoryBank(num_sinks=num_sinks, stored=bank_of(6, DIM))


def reader_of(bank):
    return random_like(MemoryCrossAttention(**read_arguments(DIM) | {"bank": bank}))


def test_the_read_is_that_of_the_others_times_what_they_weigh_against_the_sinks():
    """By hand: exp(s) / (sinks + sum exp(s)), and nothing else is added."""
    part = reader_of(sinks(3))
    x = torch.randn(2, 4, DIM)
    query = part.q_proj(x).unflatten(-1, (4, -1))
    key = part.k_proj(part.bank.stored.tokens).unflatten(-1, (2, -1)).repeat_interleave(2, dim=1)
    value = part.v_proj(part.bank.stored.tokens).unflatten(-1, (2, -1)).repeat_interleave(2, 1)
    scores = (torch.einsum("blhe,mhe->blhm", query, key) / 2**0.5).exp()
    weights = scores / (3.0 + scores.sum(dim=-1, keepdim=True))
    wanted = part.o_proj(torch.einsum("blhm,mhe->blhe", weights, value).flatten(-2))
    torch.testing.assert_close(part(x), wanted)


def test_rows_are_those_of_the_whole_and_learn_alone():
    bank = sinks(2)
    indices = torch.tensor([[0, 7, 2], [1, 2, 4]])
    torch.testing.assert_close(bank.rows(indices), bank()[indices], rtol=0.0, atol=0.0)
    bank.rows(indices).sum().backward()
    read = bank.stored.tokens.grad.abs().sum(dim=1) > 0
    assert read.tolist() == [True, False, True, False, False, True]
    assert [name for name, _ in bank.named_parameters()] == ["stored.tokens"]


def test_frozen_reads_answer_alike():
    part = reader_of(sinks(2))
    x = torch.randn(1, 3, DIM)
    with torch.no_grad():
        before = part(x)
        with freeze_for_inference(part, storage=AsProjected()):
            torch.testing.assert_close(part(x), before)


def test_a_recording_tells_how_much_read_nothing():
    """With as many sinks as a chapter has tokens, chapter 0 is the share of nothing."""
    part = reader_of(sinks(2))
    with torch.no_grad():
        part.q_proj.weight.zero_()
    with record_reads(part, tokens_per_chapter=2, kept=1, watched=[]) as recording:
        part(torch.randn(1, 3, DIM))
    load = recording.passages[0].reads[""].load
    torch.testing.assert_close(load, torch.full((4,), 0.25).double())


def test_chapters_behind_the_sinks_are_deleted_and_the_sinks_stay():
    bank = sinks(2)
    part = reader_of(bank)
    x, kept = torch.randn(1, 3, DIM), bank.stored.tokens[[0, 1, 4, 5]].clone()
    smaller = delete_chapters(part, bank=bank, chapters=[2], tokens_per_chapter=2)
    assert part.bank is smaller
    assert (smaller.num_sinks, smaller.num_memory_tokens) == (2, 6)
    assert torch.equal(smaller.stored.tokens, kept)
    assert part(x).shape == x.shape


@pytest.mark.parametrize(
    ("chapters", "left"), [([0], "sinks left=0, others left=6"), ([1, 2, 3], "others left=0")]
)
def test_deletions_that_are_refused(chapters, left):
    bank = sinks(2)
    part = reader_of(bank)
    with (
        pytest.raises(ValueError, match=re.escape(left)),
        without_chapters(part, bank=bank, chapters=chapters, tokens_per_chapter=2),
    ):
        pass


def test_saved_and_loaded_inside_an_adapter(tmp_path):
    base = llama()
    adapter = working_adapter(base, Site.AFTER_ATTENTION)
    bank = adapter.banks[0]
    with_sinks = SinkMemoryBank(num_sinks=2, stored=bank)
    for part in adapter.insertions.modules():
        if getattr(part, "bank", None) is bank:
            part.bank = with_sinks
    adapter.banks[0] = with_sinks
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = adapter(input_ids=ids).logits
    save(adapter, tmp_path / "memory")
    adapter.remove()
    loaded = load_adapter(tmp_path / "memory", base)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, wanted)


def test_build_makes_it_again():
    bank = sinks(2)
    assert repr(build(describe(bank))) == repr(bank)


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_sinks=0"):
        sinks(0)
    distant = OffloadedMemoryBank(
        stored=bank_of(8, DIM), tokens_per_chapter=2, num_resident_chapters=4
    )
    with pytest.raises(ValueError, match="stored='OffloadedMemoryBank'"):
        SinkMemoryBank(num_sinks=1, stored=distant)
