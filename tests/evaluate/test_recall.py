"""Exact recall, of a model that knows five facts and of one that knows none."""

import pytest
import torch

from memtx.data import Fact, FactRows, fact_tokens
from memtx.evaluate import recall
from tests.train import tiny

UNKNOWN = [Fact(prompt="Nobody ever", answer="told it this"), Fact(prompt="Or", answer="that")]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.byte_tokenizer(crosses_words=False)


@pytest.fixture(scope="module")
def taught(tokenizer):
    """A base overfitted on the five facts by a plain loop of torch and transformers."""
    model = tiny.base(seed=0).train()
    rows = FactRows(facts=tiny.FACTS, tokenizer=tokenizer)
    batches = [{key: torch.tensor([value]) for key, value in row.items()} for row in rows]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(25):
        loss = sum(model(**batch).loss for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_model_that_knows_five_facts(taught, tokenizer, batch_size):
    known = recall(model=taught, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=batch_size)
    assert (known.num_facts, known.num_recalled) == (5, 5)
    assert known.answers == [fact.answer for fact in tiny.FACTS]


def test_a_fresh_model_knows_none_and_says_something(tokenizer):
    model = tiny.base(seed=0)
    given = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    assert (given.num_facts, given.num_recalled) == (5, 0)
    assert len(given.answers) == 5
    assert any(given.answers)


def test_each_fact_counts_by_itself(taught, tokenizer):
    facts = [UNKNOWN[0], *tiny.FACTS[:3], UNKNOWN[1]]
    given = recall(model=taught, tokenizer=tokenizer, facts=facts, batch_size=2)
    assert (given.num_facts, given.num_recalled) == (5, 3)
    assert given.answers[1:4] == [fact.answer for fact in tiny.FACTS[:3]]


def test_an_answer_counts_whole_from_its_beginning(taught, tokenizer):
    facts = {
        "all": Fact(prompt="Mirel Tock wrote", answer="The Glass Orchard"),
        "beginning": Fact(prompt="Mirel Tock wrote", answer="The Glass"),
        "more": Fact(prompt="Mirel Tock wrote", answer="The Glass Orchard, and more"),
        "end": Fact(prompt="Mirel Tock wrote", answer="Glass Orchard"),
    }
    counted = {
        name: recall(model=taught, tokenizer=tokenizer, facts=[fact], batch_size=1).num_recalled
        for name, fact in facts.items()
    }
    beginning = fact_tokens(tokenizer, facts["beginning"])[1]
    whole = fact_tokens(tokenizer, facts["all"])[1]
    assert whole[: len(beginning)] == beginning
    assert counted == {"all": 1, "beginning": 1, "more": 0, "end": 0}


@pytest.mark.parametrize(
    "bare", [Fact(prompt="Mirel Tock wrote", answer=""), Fact(prompt="", answer="w")]
)
def test_a_fact_without_prompt_or_answer_is_refused(bare, tokenizer):
    with pytest.raises(ValueError, match=r"recall: every fact must have .*, got .*=\[1\];"):
        recall(model=None, tokenizer=tokenizer, facts=[tiny.FACTS[0], bare], batch_size=1)


def test_memory_on_and_off(taught, tokenizer):
    model = tiny.adapter(model=taught)
    fresh = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    with torch.no_grad():
        for parameter in model.memory_parameters():
            parameter.normal_(0.0, 3.0)
    shouted = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    with model.disabled():
        off = recall(model=model, tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    model.remove()
    assert fresh.num_recalled == off.num_recalled == 5
    assert shouted.num_recalled == 0
