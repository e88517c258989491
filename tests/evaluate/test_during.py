"""Measurements that a training run repeats."""

from dataclasses import replace

import pytest
from torch import nn

from memtx.evaluate import FactEvaluation, recall
from tests.train import tiny


def evaluation(*, model: nn.Module, every: int, batch_size: int) -> FactEvaluation:
    return FactEvaluation(
        model=model,
        tokenizer=tiny.byte_tokenizer(crosses_words=False),
        facts=[*tiny.FACTS[:3], tiny.Fact(prompt="The capital of", answer="nothing at all")],
        batch_size=batch_size,
        every=every,
    )


def test_it_gives_the_share_that_is_recalled():
    model = tiny.adapter(model=tiny.base(seed=0))
    facts = {"facts": tiny.fact_batches(batch_size=5)}
    replace(tiny.trainer(model=model, steps=60), streams=facts).run()
    measured = evaluation(model=model, every=2, batch_size=4)
    wanted = recall(
        model=model, tokenizer=measured.tokenizer, facts=measured.facts, batch_size=1
    ).num_recalled
    assert wanted == 3
    assert measured.measure() == {"recall": 0.75}
    with model.disabled():
        assert measured.measure() == {"recall": 0.0}


@pytest.mark.parametrize(("every", "batch_size"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(every, batch_size):
    name = "every" if every == 0 else "batch_size"
    with pytest.raises(ValueError, match=f"FactEvaluation: {name} must .* got {name}=0;"):
        evaluation(model=nn.Identity(), every=every, batch_size=batch_size)
