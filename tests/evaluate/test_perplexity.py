"""Loss on documents, against Hugging Face's own loss, one document at a time."""

import math

import pytest
import torch

from memtx.data import read_documents
from memtx.evaluate import TextLoss, text_loss
from tests.train import tiny

pytestmark = pytest.mark.shapes


@torch.no_grad()
def plain_loss(model, pieces: list[list[int]]) -> tuple[float, int]:
    """Sum and number of the predictions, from transformers alone."""
    total, count = 0.0, 0
    for piece in pieces:
        ids = torch.tensor([piece])
        total += model(input_ids=ids, labels=ids).loss.item() * (len(piece) - 1)
        count += len(piece) - 1
    return total, count


def check_equal(given: TextLoss, wanted: tuple[float, int]) -> None:
    total, count = wanted
    assert given.num_tokens == count
    assert given.total == pytest.approx(total, rel=1e-6)
    assert given.mean == pytest.approx(total / count, rel=1e-6)
    assert given.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.fixture
def model():
    made = tiny.adapter(model=tiny.base(seed=0)).eval()
    tiny.perturb(made)
    return made


def loss_of(model, *, max_length: int, batch_size: int) -> TextLoss:
    return text_loss(
        model=model,
        tokenizer=tiny.byte_tokenizer(crosses_words=False),
        documents=tiny.DOCUMENTS,
        max_length=max_length,
        batch_size=batch_size,
    )


def pieces_of(max_length: int) -> list[list[int]]:
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    documents = [tokenizer(document)["input_ids"] for document in tiny.DOCUMENTS]
    cut = [ids[n : n + max_length] for ids in documents for n in range(0, len(ids), max_length)]
    return [piece for piece in cut if len(piece) > 1]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_of_unequal_documents_equal_a_plain_loop(model, batch_size):
    pieces = pieces_of(200)
    assert len({len(piece) for piece in pieces}) == 3
    check_equal(loss_of(model, max_length=200, batch_size=batch_size), plain_loss(model, pieces))


@pytest.mark.parametrize("max_length", [2, 5, 8])
def test_long_documents_are_cut(model, max_length):
    pieces = pieces_of(max_length)
    assert len(pieces) > 3
    given = loss_of(model, max_length=max_length, batch_size=4)
    check_equal(given, plain_loss(model, pieces))


def test_memory_on_and_off(model):
    on = loss_of(model, max_length=50, batch_size=2)
    with model.disabled():
        off = loss_of(model, max_length=50, batch_size=2)
    base = loss_of(model.remove(), max_length=50, batch_size=2)
    assert off == base
    assert abs(on.mean - off.mean) > 1e-3


def test_the_real_model(data_folder):
    model, tokenizer = tiny.stories(data_folder)
    text = data_folder / "text" / "tinystories.txt"
    documents = read_documents(text, r"\n\s*\n")[:6]
    given = text_loss(
        model=model, tokenizer=tokenizer, documents=documents, max_length=512, batch_size=4
    )
    check_equal(given, plain_loss(model, [tokenizer(text)["input_ids"] for text in documents]))
    assert 2.0 < given.perplexity < 10.0  # it was made for stories


@pytest.mark.parametrize("training", [True, False])
def test_dropout_rests_and_the_mode_is_given_back(model, training):
    wanted = loss_of(model, max_length=50, batch_size=2)
    for insertion in model.insertions:
        insertion.sublayers[0].sublayer.dropout = 0.9
    model.train(training)
    assert loss_of(model, max_length=50, batch_size=2) == wanted
    assert model.training is training
    assert not any(parameter.grad_fn for parameter in model.parameters())


def test_documents_without_a_prediction_are_refused(model):
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    expected = "text_loss: a document must have at least two tokens, got documents=2;"
    with pytest.raises(ValueError, match=expected):
        text_loss(
            model=model, tokenizer=tokenizer, documents=["I", "O"], max_length=9, batch_size=1
        )
