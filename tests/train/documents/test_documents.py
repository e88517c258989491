"""The parts of learning a document: rows, background, passages, sizes of the memory."""

import re
from dataclasses import replace

import pytest
import torch

from memtx.train.documents import (
    TextLesson,
    background_of,
    measures,
    memory_for_text,
    own_background,
    passages_of,
    text_trainer,
)
from memtx.train.documents.training import readings_of, text_windows
from memtx.usage import evenly_spaced, text_states
from tests.train import tiny

LESSON = TextLesson(
    steps=2,
    learning_rate=1e-2,
    length=16,
    text_rows=2,
    readings=2,
    background_rows=2,
    text_weight=1.0,
    distillation_weight=0.5,
    locality_weight=1.0,
    samples=1,
    seed=0,
)


def words():
    return tiny.byte_tokenizer(crosses_words=False)


def ids_of(text):
    return words()(text, add_special_tokens=False)["input_ids"]


def test_windows_overlap_by_half_and_hold_every_token_twice_but_at_the_ends():
    text = " ".join(tiny.DOCUMENTS)
    whole = ids_of(text)
    windows = text_windows(words(), [text], length=16)
    assert all(len(row) <= 16 for row in windows)
    assert windows[0] == whole[:16]
    assert windows[1] == whole[8:24]
    assert windows[-1][-1] == whole[-1]
    short = text_windows(words(), ["It rained."], length=64)
    assert short == [ids_of("It rained.")]


def test_readings_are_the_piece_again_the_next_and_what_the_base_says():
    text = " ".join(tiny.DOCUMENTS)
    base = tiny.base(seed=0)
    whole = ids_of(text)
    count = -(-len(whole) // 8)
    readings = readings_of(base, tokenizer=words(), documents=[text], lesson=LESSON)
    assert readings[0] == (whole[:8], whole[:8])
    assert readings[count] == (whole[:8], whole[8:16])
    said = readings[2 * count - 1 :]
    assert said
    assert {read for read, _ in [(tuple(r), f) for r, f in said]} <= {
        tuple(whole[n : n + 8]) for n in range(0, len(whole), 8)
    }
    without = readings_of(
        base, tokenizer=words(), documents=[text], lesson=replace(LESSON, samples=0)
    )
    assert without == readings[: 2 * count - 1]


def test_background_is_kept_aside_at_even_distances_and_never_trained_on():
    documents = [f"story {number} about a boat and a dog on a lake" for number in range(60)]
    found = background_of(documents, tokenizer=words(), length=8)
    rows = len(found.training) + len(found.held_out)
    # One in eight.
    assert len(found.held_out) == -(-rows // 8)
    assert rows == 8 * len(found.held_out) - (-rows % 8)
    many = background_of(documents * 20, tokenizer=words(), length=8)
    assert len(many.held_out) <= 64
    with pytest.raises(ValueError, match="rows=3"):
        background_of(documents[:1], tokenizer=words(), length=8)
    own = own_background(
        tiny.base(seed=0), tokenizer=words(), num_rows=24, length=12, batch_size=10, seed=0
    )
    # It has an end token and no begin token, so a text begins behind an end.
    assert {row[0] for row in own.training} == {0}
    assert max(map(len, own.training)) <= 12


def test_passages_are_beginnings_and_how_the_text_goes_on():
    text = " ".join(tiny.DOCUMENTS)
    whole = ids_of(text)
    found = passages_of(words(), [text], num_passages=2, prompt=4, answer=3)
    assert found[0] == (whole[:4], whole[4:7])
    assert len(found) == 2
    assert passages_of(words(), ["It"], num_passages=2, prompt=40, answer=3) == []
    with pytest.raises(ValueError, match="answer=0"):
        passages_of(words(), [text], num_passages=2, prompt=4, answer=0)


def test_a_memory_is_sized_by_the_base_and_starts_from_its_states():
    base = tiny.base(seed=0)
    states = text_states(model=base, rows=[list(range(20))], layer=1)
    start = evenly_spaced(states, num_rows=10)
    adapter = memory_for_text(base, start=start)
    assert torch.equal(adapter.banks[0].stored.tokens, start)
    assert [each.layer for each in adapter.insertions] == [0, 1]
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), adapter.disabled():
        off = adapter(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(adapter(input_ids=ids).logits, off)


def test_a_text_is_learned_and_measured():
    torch.manual_seed(0)
    text = " ".join(tiny.DOCUMENTS)
    base, tokenizer = tiny.base(seed=0), words()
    background = background_of(["a dog in the park"] * 40, tokenizer=tokenizer, length=8)
    rows = text_windows(tokenizer, [text], length=16)
    start = evenly_spaced(text_states(model=base, rows=rows, layer=1), num_rows=16)
    adapter = memory_for_text(base, start=start)
    passages = passages_of(tokenizer, [text], num_passages=2, prompt=4, answer=4)

    def measured():
        return measures(
            adapter,
            tokenizer=tokenizer,
            documents=[text],
            held_out=background.held_out,
            passages=passages,
            length=16,
            batch_size=4,
        )

    before = measured()
    text_trainer(
        adapter,
        tokenizer=tokenizer,
        documents=[text],
        background=background,
        lesson=replace(LESSON, steps=60),
        loggers=[],
    ).run()
    after = measured()
    assert after.text_loss < 0.6 * before.text_loss
    assert after.text_accuracy > before.text_accuracy
    assert after.background_loss < before.background_loss + 1.0
    right = sum(each.correct for each in after.passages)
    assert right >= sum(each.correct for each in before.passages)


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"steps": 0}, "steps=0"),
        ({"length": 15}, "length // 16=0"),
        ({"samples": -1}, "samples=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_lessons_that_are_refused(changes, value):
    with pytest.raises(ValueError, match=re.escape(value)):
        replace(LESSON, **changes)
