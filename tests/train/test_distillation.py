"""Distillation: what is compared with what, which tokens count, and what is refused."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memtx.data import Batches, ContextRows, begin_tokens, pieces_of, read_again, read_on
from memtx.train import DistillationLoss, Objective
from tests.train import tiny

READINGS = [([5, 6, 7, 8], [9, 10, 11]), ([12], [13, 14]), ([3, 4], [15])]


def term(changes):
    values = {"name": "d", "stream": "d", "weight": 1.0, "chunk": 2, "num_prefix": 1}
    return DistillationLoss(**values | changes)


def batch_of(readings, prefix):
    rows = ContextRows(readings=readings, prefix=prefix)
    return Batches(rows=rows, batch_size=len(readings), seed=0, pad_token_id=0)[0]


def by_hand(model, *, readings, prefix):
    """Row by row, without padding, from whole logits."""
    total, count = 0.0, 0
    for read, following in readings:
        with model.disabled(), torch.no_grad():
            teacher = model(input_ids=torch.tensor([[*prefix, *read, *following]])).logits[0]
        student = model(input_ids=torch.tensor([[*prefix, *following]])).logits[0]
        # Without a prefix the student has nothing to foretell the first token from.
        compared = len(following) - (not prefix)
        wanted = F.log_softmax(teacher[-compared - 1 : -1], dim=-1)
        given = F.log_softmax(student[-compared - 1 : -1], dim=-1)
        total = total + (wanted.exp() * (wanted - given)).sum()
        count += compared
    return total, count


@pytest.mark.parametrize("prefix", [[1], [1, 2], []], ids=["one", "two", "none"])
def test_equals_the_definition(prefix):
    """KL(base with the text before || memory without it), at the tokens of the continuation."""
    model = tiny.adapter(model=tiny.base(seed=0))
    tiny.perturb(model)
    batch = batch_of(READINGS, prefix)
    own = term({"num_prefix": len(prefix)})
    wanted, count = by_hand(model, readings=READINGS, prefix=prefix)
    found = own.totals(model, batch)
    torch.testing.assert_close(found, wanted[None], rtol=1e-4, atol=1e-5)
    assert own.counts(model, batch).tolist() == [count]
    parameters = list(model.memory_parameters())
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(wanted, parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_a_fresh_memory_without_a_text_before_has_nothing_to_learn():
    model = tiny.adapter(model=tiny.base(seed=0))
    nothing_read = [([], following) for _, following in READINGS]
    with torch.no_grad():
        nothing = float(term({}).totals(model, batch_of(nothing_read, [1])))
        something = float(term({}).totals(model, batch_of(READINGS, [1])))
    assert nothing == pytest.approx(0.0, abs=1e-5)
    assert something > 0.1


def test_it_stands_in_an_objective():
    model = tiny.adapter(model=tiny.base(seed=0))
    objective = Objective(model=model, terms=[term({"weight": 0.5})])
    assert (objective.streams, objective.weights) == (["d"], {"d": 0.5})
    assert objective({"d": batch_of(READINGS, [1])}).shape == (1,)


@pytest.mark.parametrize(
    ("changes", "value"),
    [({"num_prefix": -1}, "num_prefix=-1"), ({"chunk": 0}, "chunk=0"), ({"weight": -0.5}, "-0.5")],
)
def test_values_that_are_refused(changes, value):
    with pytest.raises(ValueError, match=re.escape(value)):
        term(changes)


def test_models_and_rows_that_are_refused():
    with pytest.raises(ValueError, match="DistillationLoss: the model .* model='Identity'"):
        term({}).check(nn.Identity())
    model = tiny.adapter(model=tiny.base(seed=0))
    with pytest.raises(ValueError, match="num_prefix=2"):
        term({"num_prefix": 2}).totals(model, batch_of([([], [5, 6])], [1]))


def test_rows_of_readings():
    pieces = [[5, 6], [7, 8], [9]]
    assert read_again(pieces)[2] == ([9], [9])
    assert read_on(pieces) == [([5, 6], [7, 8]), ([7, 8], [9])]
    rows = ContextRows(readings=read_on(pieces), prefix=[1])
    assert len(rows) == 2
    assert rows[1] == {"input_ids": [1, 7, 8, 9], "labels": [-100, -100, -100, 9]}
    with pytest.raises(ValueError, match="without a continuation=1"):
        ContextRows(readings=[([5], [])], prefix=[1])
    with pytest.raises(ValueError, match="readings=0"):
        ContextRows(readings=[], prefix=[1])


def test_pieces_have_neither_begin_nor_end():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    assert begin_tokens(tokenizer) == []
    tiny.set_end(tokenizer)
    assert begin_tokens(tokenizer) == []
    whole = tokenizer(tiny.DOCUMENTS[0], add_special_tokens=False)["input_ids"]
    pieces = pieces_of(tokenizer, tiny.DOCUMENTS[:1], length=5)
    assert [token for piece in pieces for token in piece] == whole
    assert {len(piece) for piece in pieces[:-1]} == {5}
    with pytest.raises(ValueError, match="documents=1"):
        pieces_of(tokenizer, [""], length=5)
    with pytest.raises(ValueError, match="length=0"):
        pieces_of(tokenizer, tiny.DOCUMENTS, length=0)


def test_a_real_tokenizer_begins_its_texts(data_folder):
    assert begin_tokens(tiny.stories(data_folder)[1]) == [1]
