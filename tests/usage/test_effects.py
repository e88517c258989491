"""What memory does to answers: with it and without, whole and chapter by chapter."""

import copy
import re

import pytest
import torch

from memtx import Site, TokenRouting
from memtx.data import Fact
from memtx.usage import (
    answer_log_probability,
    chapter_effects,
    compare_next_tokens,
    delete_chapters,
    memory_off,
)
from tests import routing
from tests.adapters.bases import llama, logits, token_ids, working_adapter
from tests.parts import linear
from tests.routing import TOKENS
from tests.usage.words import tokenizer

FACT = Fact(prompt="w2 w3 w4", answer="w5 w6")


def models():
    yield working_adapter(llama(), Site.AFTER_MLP), 2
    yield routing.transformer(TokenRouting(), losses=[]), TOKENS


def test_log_probability_of_an_answer_by_hand():
    for model, _ in models():
        found = answer_log_probability(model=model, tokenizer=tokenizer(), fact=FACT)
        logs = logits(model, torch.tensor([[2, 3, 4, 5, 6]])).log_softmax(-1)[0]
        assert found == pytest.approx(float(logs[2, 5] + logs[3, 6]), rel=1e-5)


def test_effects_are_those_of_deleting_and_leave_the_model():
    for model, size in models():
        ids = token_ids(1, 4)
        before = logits(model, ids)
        given = {"tokenizer": tokenizer(), "fact": FACT}
        effects = chapter_effects(
            model=model, bank=model.banks[0], chapters=[2, 0], tokens_per_chapter=size, **given
        )
        assert torch.equal(logits(model, ids), before)
        whole = answer_log_probability(model=model, **given)
        for effect, chapter in zip(effects, (2, 0), strict=True):
            smaller = copy.deepcopy(model)
            bank = smaller.banks[0]
            delete_chapters(smaller, bank=bank, chapters=[chapter], tokens_per_chapter=size)
            wanted = answer_log_probability(model=smaller, **given)
            assert effect.chapter == chapter
            assert effect.log_probability == wanted
            assert effect.change == wanted - whole != 0.0


def test_memory_off_is_the_base_or_reads_of_nothing():
    base, ids = llama(), token_ids(2, 5)
    plain = logits(base, ids)
    adapter = working_adapter(base, Site.AFTER_MLP)
    with memory_off(adapter):
        assert torch.equal(logits(adapter, ids), plain)
    model = routing.transformer(TokenRouting(), losses=[])
    before, silent = logits(model, ids), copy.deepcopy(model)
    for part in silent.modules():
        if hasattr(part, "router"):
            torch.nn.init.zeros_(part.o_proj.weight)
    with memory_off(model):
        assert torch.equal(logits(model, ids), logits(silent, ids))
    assert torch.equal(logits(model, ids), before)


def test_comparison_by_hand():
    for model, _ in models():
        ids = token_ids(1, 6)
        found = compare_next_tokens(model, ids[0], top=3)
        on = logits(model, ids)[0].softmax(-1)
        with memory_off(model):
            off = logits(model, ids)[0].softmax(-1)
        for probabilities, best, given, following in (
            (on, found.on, found.on_probabilities, found.next_on),
            (off, found.off, found.off_probabilities, found.next_off),
        ):
            assert torch.equal(best, probabilities.topk(3).indices)
            torch.testing.assert_close(given, probabilities.topk(3).values)
            wanted = [float(probabilities[place, ids[0, place + 1]]) for place in range(5)]
            assert following.tolist() == pytest.approx(wanted, rel=1e-4)
        divergence = (on * (on.log() - off.log())).sum(-1)
        torch.testing.assert_close(found.divergence, divergence, rtol=1e-4, atol=1e-6)


def test_what_is_refused():
    model = working_adapter(llama(), Site.AFTER_MLP)
    message = "the tokens of one text, at least one, got shape=(0,); pass a tensor [length]."
    with pytest.raises(ValueError, match=re.escape(message)):
        compare_next_tokens(model, torch.zeros(0, dtype=torch.long), top=1)
    message = "memory_off: the model must have a memory reader in it, got model='Linear'"
    with pytest.raises(ValueError, match=re.escape(message)), memory_off(linear(2, 2)):
        pass
