"""Perplexity of long texts: windows, and the numbers of a plain loop over transformers."""

import math

import pytest
import torch

from memtx.data import read_documents
from memtx.evaluate import Perplexity, RollingWindows, StridedWindows, perplexity
from tests.evaluate import models
from tests.train import tiny

DOCUMENT = " ".join(tiny.DOCUMENTS)


@torch.no_grad()
def plain_loop(model, ids: list[int], *, max_length: int, stride: int) -> tuple[float, int]:
    """The loop of transformers' guide, each predicted token counted once."""
    nats, count, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : done - begin] = -100
        predicted = int((labels[:, 1:] != -100).sum())
        if predicted:
            nats += model(input_ids=window, labels=labels).loss.item() * predicted
        count, done = count + predicted, end
        if end == len(ids):
            break
    return nats, count


@torch.no_grad()
def guide_loop(model, ids: list[int], *, max_length: int, stride: int) -> float:
    """The loop exactly as the guide has it: windows weighted by one token less."""
    nats, count, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : -(end - done)] = -100
        weight = int((labels != -100).sum()) - 1
        nats += model(input_ids=window, labels=labels).loss.item() * weight
        count, done = count + weight, end
        if end == len(ids):
            break
    return math.exp(nats / count)


def measured(model, tokenizer, *, documents, windows, batch_size) -> Perplexity:
    return perplexity(
        model=model,
        tokenizer=tokenizer,
        documents=documents,
        windows=windows,
        batch_size=batch_size,
    )


@pytest.mark.parametrize("kind", [models.bare, models.adapter, models.whole, models.tensor_model])
@pytest.mark.parametrize(("max_length", "stride"), [(2, 1), (7, 3), (7, 7), (300, 300)])
def test_strided_windows_equal_a_plain_loop(kind, max_length, stride):
    model, tokenizer = kind(), tiny.byte_tokenizer(crosses_words=False)
    documents = [DOCUMENT, tiny.DOCUMENTS[1]]
    loops = [
        plain_loop(model, tokenizer(text)["input_ids"], max_length=max_length, stride=stride)
        for text in documents
    ]
    windows = StridedWindows(max_length=max_length, stride=stride)
    for batch_size in (1, 5):
        found = measured(
            model, tokenizer, documents=documents, windows=windows, batch_size=batch_size
        )
        assert sum(found.tokens) == sum(count for _, count in loops)
        wanted = sum(nats for nats, _ in loops) / sum(found.tokens)
        assert found.mean == pytest.approx(wanted, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-4)


def test_the_real_model_on_a_real_text(data_folder):
    model, tokenizer = tiny.stories(data_folder)
    text = "\n\n".join(read_documents(data_folder / "text" / "tinystories.txt", r"\n\s*\n")[:8])
    ids = tokenizer(text, verbose=False)["input_ids"]
    found = measured(
        model,
        tokenizer,
        documents=[text],
        windows=StridedWindows(max_length=512, stride=256),
        batch_size=4,
    )
    nats, count = plain_loop(model, ids, max_length=512, stride=256)
    assert sum(found.tokens) == count == len(ids) - 1
    assert f"{found.perplexity:.4f}" == f"{math.exp(nats / count):.4f}"
    guide = guide_loop(model, ids, max_length=512, stride=256)
    assert found.perplexity == pytest.approx(guide, rel=1e-3)
    assert 2.0 < found.perplexity < 10.0


@pytest.mark.parametrize("length", [1, 4, 5, 8, 11])
def test_rolling_windows_predict_every_token_once(length):
    ids = list(range(1, length + 1))
    rows = RollingWindows(max_length=4, prefix_token_id=0)(ids)
    assert [token for _, predicted in rows for token in predicted] == ids
    for context, predicted in rows:
        assert len(context) + len(predicted) - 1 <= 4
        whole = [*context, *predicted]
        assert whole == list(range(whole[0], whole[0] + len(whole)))
    # The last one reads as much as there is, up to what fits.
    assert len(rows[-1][0]) + len(rows[-1][1]) - 1 == min(4, length)


@pytest.mark.parametrize(("length", "max_length", "stride"), [(9, 4, 2), (9, 4, 3), (3, 8, 2)])
def test_strided_windows_predict_all_but_the_first_token_once(length, max_length, stride):
    ids = list(range(length))
    rows = StridedWindows(max_length=max_length, stride=stride)(ids)
    assert [token for _, predicted in rows for token in predicted] == ids[1:]
    assert all(len(context) + len(predicted) <= max_length for context, predicted in rows)
    assert all(len(context) >= max_length - stride for context, _ in rows[1:])


def test_words_and_bytes():
    found = Perplexity(nats=[1.0, 2.0], tokens=[2, 2], num_words=4, num_bytes=24)
    assert found.word_perplexity == pytest.approx(math.exp(3 / 4))
    assert found.byte_perplexity == pytest.approx(math.exp(3 / 24))
    assert found.bits_per_byte == pytest.approx(3 / 24 / math.log(2))
    given = measured(
        models.bare(),
        tiny.byte_tokenizer(crosses_words=False),
        documents=["one  two\nthrée"],
        windows=StridedWindows(max_length=9, stride=9),
        batch_size=1,
    )
    assert (given.num_words, given.num_bytes) == (3, 15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: StridedWindows(max_length=1, stride=1),
            "StridedWindows: max_length - 1 must .* got max_length - 1=0;",
        ),
        (lambda: StridedWindows(max_length=4, stride=0), "got stride=0;"),
        (
            lambda: StridedWindows(max_length=4, stride=5),
            "StridedWindows: stride must be at most max_length, .* got stride=5, max_length=4;",
        ),
        (
            lambda: RollingWindows(max_length=0, prefix_token_id=0),
            "RollingWindows: max_length must .* got max_length=0;",
        ),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_without_a_prediction_are_refused():
    windows = StridedWindows(max_length=4, stride=2)
    with pytest.raises(ValueError, match="there must be something to predict, .* got rows=0,"):
        measured(
            models.bare(),
            tiny.byte_tokenizer(crosses_words=False),
            documents=["I"],
            windows=windows,
            batch_size=1,
        )
