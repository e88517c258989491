"""The page without a browser: whole, alone, and nothing of a text is markup."""

import json
import re

import pytest
import torch

from memtx.usage import delete_chapters, record_reads
from memtx.usage.report import inspect_texts, render, summary, write_report
from memtx.usage.report.words import pieces_of, word_of
from tests.adapters.bases import logits
from tests.routing import CHAPTERS, TOKENS
from tests.usage.report.pages import TEXTS, Page, dense, inspection, routed
from tests.usage.words import tokenizer

each_kind = pytest.mark.parametrize("make", [dense, routed])


@each_kind
def test_a_page_holds_its_data_and_loads_nothing(make, tmp_path):
    found = inspection(*make(), TEXTS)
    path = tmp_path / "new" / "report.html"
    write_report(found, path)
    text = path.read_text(encoding="utf-8")
    assert text == render(found)
    page = Page(text)
    (data, code) = page.scripts
    assert data[0] == {"type": "application/json", "id": "data"}
    assert json.loads(data[1]) == json.loads(json.dumps(found))
    assert code[0] == {}
    calls = r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|innerHTML|insertAdjacent|eval\("
    assert not re.search(calls, text)
    for _, attributes in page.tags:
        assert not {"src", "onerror", "onclick", "style"} & set(attributes)
    assert all(link["href"].startswith("#") for link in page.attributes("a"))
    assert any(
        "default-src 'none'" in (each.get("content") or "") for each in page.attributes("meta")
    )
    assert not page.attributes("img") + page.attributes("link") + page.attributes("b")


def test_what_must_be_escaped_is():
    text = render(inspection(*dense(), TEXTS))
    assert text.count("</script>") == 2
    assert text.count("<title>") == text.count("</title>") == 1
    assert "boom()" in text
    assert "<img" not in text
    assert "\u2028" not in text
    assert len(Page(text).scripts) == 2


@each_kind
def test_what_is_shown_is_what_was_recorded(make):
    model, size = make()
    found = inspection(model, size, {"one": TEXTS["one"]})
    ids = torch.tensor([tokenizer()(TEXTS["one"])["input_ids"]])
    with record_reads(model, tokens_per_chapter=size, kept=3, watched=[]) as recording:
        plain = logits(model, ids)[0]
    (text,) = found["texts"]
    assert "".join(text["pieces"]) == TEXTS["one"]
    for number, (name, reads) in enumerate(recording.passages[0].reads.items()):
        told = found["readers"][number]
        assert told["name"] == name
        assert told["load"] == pytest.approx(reads.load.tolist(), abs=1e-5)
        assert told["load"][told["order"][0]] == max(told["load"])
        for place, entries in enumerate(text["reads"][number]):
            for chapter, mille in entries:
                weight = float(reads.chapters[0, place, chapter])
                assert mille == pytest.approx(1000 * weight, abs=0.51)
            assert sum(mille for _, mille in entries) == pytest.approx(1000, abs=10)
        tops = [entries[0][0] for entries in text["tops"][number]]
        assert tops == reads.tokens[0, :, 0].tolist()
    best = [found["words"][row[0][0]] for row in text["on"]]
    assert best == [word_of(tokenizer(), each) for each in plain.argmax(-1).tolist()]
    logs = plain.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])
    assert text["loss_on"] == pytest.approx(-float(logs.mean()), abs=1e-4)


def test_a_mean_is_told_of_readers_of_one_bank_and_chapters_are_taken_out():
    found = inspection(*dense(), {"one": TEXTS["one"], "two": "w3 w4"})
    loads = torch.tensor([each["load"] for each in found["readers"]])
    assert found["mean"]["load"] == pytest.approx(loads.mean(0).tolist(), abs=2e-5)
    assert [len(row) for row in found["mean"]["overlap"]] == [2, 2]
    assert found["mean"]["overlap"][0][0] == pytest.approx(1.0)
    chapters, changes = zip(*found["effects"]["chapters"], strict=True)
    assert sorted(chapters) == [0, 1, 2, 3]
    assert list(changes) == sorted(changes)
    assert found["effects"]["whole"] != found["effects"]["off"]
    assert found["readers"][0]["label"] == "layer 0, after mlp"


def test_the_last_chapter_that_can_be_chosen_is_not_taken_out():
    model, _ = routed()
    gone = list(range(2, CHAPTERS))
    delete_chapters(model, bank=model.banks[0], chapters=gone, tokens_per_chapter=TOKENS)
    found = inspection(model, TOKENS, {"one": "w2 w3"})
    assert [chapter for chapter, _ in found["effects"]["chapters"]] == [0]
    assert [each["shared"] for each in found["readers"]] == [1, 1]


def given(changes):
    model, size = dense()
    plain = {
        "tokenizer": tokenizer(),
        "texts": {"one": "w2 w3 w4", "word": "w5"},
        "title": "t",
        "tokens_per_chapter": size,
        "max_length": 2,
        "fact": None,
        "bank": 0,
    }
    return inspect_texts(model, **(plain | changes))


def test_a_long_text_is_cut_and_the_summary_says_so():
    found = given({})
    told = summary(found)
    assert [(text["tokens"], text["cut"]) for text in told["texts"]] == [(2, True), (1, False)]
    assert told["texts"][1]["loss_on"] is None
    assert told["effects"] is None
    assert found["about"].endswith("3 tokens of 2 text(s). The end of one was left out.")
    json.dumps(told, allow_nan=False)


class Slow:
    is_fast = False

    def __call__(self, text, verbose):
        return {"input_ids": [len(word) for word in text.split()]}

    def __len__(self):
        return 10

    def decode(self, ids, clean_up_tokenization_spaces):
        return "x" * ids[0]

    def convert_ids_to_tokens(self, token):
        return f"\u2581{'x' * token}"


def test_pieces_of_a_tokenizer_without_offsets_and_words_beyond_the_vocabulary():
    assert pieces_of(Slow(), "a bbb", name="n", max_length=9) == ([1, 3], [" x", " xxx"], False)
    assert word_of(tokenizer(), 10_000) == "<10000>"
    assert word_of(tokenizer(), 7) == "w7"


def test_a_character_of_several_tokens_is_shown_once():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={each: n for n, each in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    ids, pieces, _ = pieces_of(made, "a \u6f22b", name="n", max_length=99)
    assert len(ids) == 6
    assert "".join(pieces) == "a \u6f22b"


def refused(message, changes):
    with pytest.raises(ValueError, match=re.escape(message)):
        given(changes)


def test_what_cannot_be_shown_is_refused(tmp_path):
    refused("inspect_texts: there must be a text, got texts=[]; pass texts by name.", {"texts": {}})
    refused("a text must have a token, got text='e'; leave it out.", {"texts": {"e": " "}})
    refused("the number of a bank, from 0 to 0, got bank=1; count", {"bank": 1})
    refused("max_length must be an integer of at least 1, got max_length=0;", {"max_length": 0})
    model, size = dense()
    model.base.lm_head.weight.data.fill_(float("nan"))
    message = "the model's distributions must be finite, got not finite=1; load the model in a"
    with pytest.raises(ValueError, match=re.escape(message)):
        inspection(model, size, {"one": "w2"})
    path = tmp_path / "file" / "report.html"
    path.parent.write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=re.escape(f"got path='{path}'")):
        write_report(inspection(*dense(), {"one": "w2"}), path)
