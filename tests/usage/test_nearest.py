"""Memory tokens in words and in texts, against what is written out by hand."""

import re

import pytest
import torch

from memtx import Site, TokenRouting
from memtx.usage import alike_tokens, record_reads, snippets, written_tokens
from tests import routing
from tests.adapters.bases import HIDDEN, fresh_adapter, llama, working_adapter
from tests.parts import bank_of
from tests.usage.words import tokenizer

READER = "insertions.1.sublayers.0.sublayer"
TEXTS = ["w2 w3 w4 w5 w6", "w9 w8 w7", ""]


def adapter():
    return working_adapter(llama(), Site.AFTER_MLP)


def test_written_tokens_are_those_a_read_of_one_token_makes_likelier():
    model = adapter()
    read = model.get_submodule(READER)
    # A bank of this memory token alone is read with weight 1 by any query.
    row = read.bank().detach()[4:5]
    alone = bank_of(1, HIDDEN)
    (found,) = written_tokens(model, reader=READER, memory_tokens=[4], num=3)
    with torch.no_grad():
        alone.tokens.copy_(row)
        whole, read.bank = read.bank, alone
        added = read(torch.randn(1, 1, HIDDEN))[0, 0]
        read.bank = whole
        scores = model.base.lm_head(model.base.model.norm(added))
    assert found.memory_token == 4
    assert found.ids == scores.topk(3).indices.tolist()
    assert found.scores == pytest.approx(scores.topk(3).values.tolist(), rel=1e-4)


def test_written_tokens_of_a_composed_model():
    model = routing.transformer(TokenRouting(), losses=[])
    name = "layers.1.sublayers.2.sublayer"
    found = written_tokens(model, reader=name, memory_tokens=[0, 35], num=100)
    assert [each.memory_token for each in found] == [0, 35]
    assert sorted(found[0].ids) == list(range(64))
    assert found[0].scores == sorted(found[0].scores, reverse=True)


def test_alike_tokens_find_the_embedding_a_token_started_from():
    model = fresh_adapter(llama(), Site.AFTER_MLP)
    bank, weight = model.banks[0], model.base.model.embed_tokens.weight
    with torch.no_grad():
        bank.tokens[2] = 3.0 * weight[17]
    found = alike_tokens(model, bank=bank, memory_tokens=[2, 3], num=2)
    assert found[0].ids[0] == 17
    assert found[0].scores[0] == pytest.approx(1.0, abs=1e-5)
    cosine = torch.cosine_similarity(bank().detach()[3], weight.detach()[found[1].ids[1]], dim=0)
    assert found[1].scores[1] == pytest.approx(float(cosine), abs=1e-5)
    composed = routing.transformer(TokenRouting(), losses=[])
    composed.banks[0] = bank_of(4, 16)
    (near,) = alike_tokens(composed, bank=composed.banks[0], memory_tokens=[1], num=1)
    assert -1.0 <= near.scores[0] <= 1.0


def test_snippets_are_the_places_of_largest_weight():
    model, words = adapter(), tokenizer()
    options = {"reader": READER, "memory_token": 5, "around": 1, "max_length": 4}
    found = snippets(model, tokenizer=words, texts=TEXTS, num=3, **options)
    wanted = []
    for number, text in enumerate(TEXTS[:2]):
        ids = words(text)["input_ids"][:4]
        with record_reads(model, tokens_per_chapter=1, kept=1, watched=[]) as recording:
            model(input_ids=torch.tensor([ids]))
        weights = recording.passages[0].reads[READER].chapters[0, :, 5].tolist()
        wanted += [(weight, number, place) for place, weight in enumerate(weights)]
    wanted.sort(reverse=True)
    assert [(e.weight, e.text, e.position) for e in found] == wanted[:3]
    for each in found:
        shown = TEXTS[each.text].split()[:4]
        assert each.token == shown[each.position]
        assert each.before == "".join(shown[max(0, each.position - 1) : each.position])
        assert each.after == "".join(shown[each.position + 1 : each.position + 2])


def test_what_cannot_be_told_is_refused():
    model, options = adapter(), {"memory_tokens": [0], "num": 1}
    with pytest.raises(ValueError, match=re.escape(f"{READER}, got reader='there'; name it as")):
        written_tokens(model, reader="there", **options)
    message = "written_tokens: memory tokens must be numbers from 0 to 6, got memory_tokens=[7];"
    with pytest.raises(ValueError, match=re.escape(message)):
        written_tokens(model, reader=READER, memory_tokens=[6, 7], num=1)
    with pytest.raises(ValueError, match=re.escape("alike_tokens: memory tokens must be")):
        alike_tokens(model, bank=model.banks[0], memory_tokens=[-1], num=1)
    message = "the width of the token embedding, got bank.dim=8, embedding=32; use written_tokens"
    with pytest.raises(ValueError, match=re.escape(message)):
        alike_tokens(model, bank=bank_of(3, 8), **options)
    message = "snippets: a text must have a token, got texts=1; pass texts to read."
    with pytest.raises(ValueError, match=re.escape(message)):
        snippets(
            model,
            tokenizer=tokenizer(),
            texts=[""],
            reader=READER,
            memory_token=0,
            num=1,
            around=1,
            max_length=4,
        )
