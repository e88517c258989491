"""What a model makes up: by the seed, by its own distribution, and nothing but new tokens."""

import re

import pytest
import torch

from memtx.generate import samples
from tests.adapters.bases import VOCABULARY, llama

GIVEN = {
    "max_new_tokens": 6,
    "batch_size": 4,
    "temperature": 1.0,
    "seed": 3,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def drawn(model, prompts, changes):
    return samples(**{"model": model, "prompts": prompts} | GIVEN | changes)


def test_the_seed_decides_and_torch_goes_on_as_if_nothing_was():
    model = llama()
    prompts = [[5, 6]] * 5
    state = torch.get_rng_state()
    one = drawn(model, prompts, {})
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(each) for each in one] == [6] * 5
    assert one == drawn(model, prompts, {})
    assert one != drawn(model, prompts, {"seed": 4})


def test_tokens_come_from_the_models_own_distribution():
    """4,000 first tokens against the softmax of the logits."""
    model = llama()
    found = drawn(model, [[5, 6]] * 4000, {"max_new_tokens": 1, "batch_size": 4000})
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=VOCABULARY) / 4000
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(dim=-1)
    torch.testing.assert_close(counts, wanted, rtol=0.0, atol=0.04)


def test_an_end_token_ends_a_text():
    model = llama()
    whole = drawn(model, [[5, 6]] * 8, {})
    end = whole[0][2]
    ended = drawn(model, [[5, 6]] * 8, {"eos_token_id": end})
    assert all(end not in each for each in ended)
    assert len(ended[0]) <= 2


@pytest.mark.parametrize(
    ("prompts", "changes", "value"),
    [
        ([[1], [1, 2]], {}, "lengths=[1, 2]"),
        ([], {}, "lengths=[]"),
        ([[]], {}, "lengths=[0]"),
        ([[1]], {"temperature": 0.0}, "temperature=0.0"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_is_refused(prompts, changes, value):
    with pytest.raises(ValueError, match=re.escape(value)):
        drawn(llama(), prompts, changes)
