"""Batches that were moved, with what is known of them, beside plain ones."""

import pytest
import torch

from memtx.data import Batches, TextRows
from memtx.train import NextTokenLoss
from memtx.train.moving import labelled, move, unpadded
from tests.train import sharded_models as models
from tests.train import tiny

CPU = torch.device("cpu")


def text_batch():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    rows = TextRows(documents=tiny.DOCUMENTS, tokenizer=tokenizer, length=8)
    return Batches(rows=rows, batch_size=3, seed=0, pad_token_id=0)[0]


def copy_of(batch):
    return {name: tensor.clone() for name, tensor in batch.items()}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["routed shared bank", "tensor memory", "adapter"])
def test_a_term_says_the_same_of_a_moved_batch(name, padded):
    model = models.MODELS[name]()
    batch = tiny.fact_batches(batch_size=3)[0] if padded else text_batch()
    found = []
    for given in (copy_of(batch), move(copy_of(batch), CPU)):
        totals = tiny.facts_term().totals(model, given)
        gradients = torch.autograd.grad(
            totals.sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True
        )
        found.append([totals, *(each for each in gradients if each is not None)])
    assert unpadded(move(copy_of(batch), CPU)) != padded
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_moved_batch_holds_what_it_held():
    batch = text_batch()
    moved = move(copy_of(batch), CPU)
    assert moved.keys() == batch.keys()
    assert all(torch.equal(moved[name], batch[name]) for name in batch)


def test_places_are_those_before_a_label():
    labels = torch.tensor([[7, 8, -100, 9], [-100, -100, -100, -100], [5, -100, 6, -100]])
    for batch in ({"labels": labels}, move({"labels": labels}, CPU)):
        assert labelled(batch).tolist() == [0, 2, 9]


def test_what_was_known_of_a_changed_batch_is_known_no_more():
    moved = move({"labels": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3)}, CPU)
    assert unpadded(moved)
    moved["labels"][0, 2] = -100
    moved["attention_mask"][0, 0] = 0
    assert labelled(moved).tolist() == [0]
    assert not unpadded(moved)
    other = {**moved, "labels": torch.tensor([[7, -100, 9]])}
    assert labelled(other).tolist() == [1]


def test_a_term_over_another_refuses_nothing_that_a_model_takes():
    # A term of a user's own may hand the batch to the model as it is.
    model, term = tiny.base(seed=0), NextTokenLoss(name="a", stream="a", weight=1.0, chunk=16)
    moved = move(text_batch(), CPU)
    mean = term.totals(model, moved)[0] / term.counts(model, moved)[0]
    assert mean.item() == pytest.approx(model(**moved).loss.item(), rel=1e-6)
