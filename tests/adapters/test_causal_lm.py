"""The two halves of a model give its logits, with and without memory."""

import pytest
import torch

from memtx import Site
from memtx.adapters import CausalLM, halves_of
from tests.adapters.bases import (
    each_architecture,
    llama,
    logits,
    tiny_base,
    token_ids,
    working_adapter,
)


@each_architecture
@pytest.mark.shapes
def test_halves_give_the_logits(architecture):
    base, ids = tiny_base(architecture), token_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for model in (base, working_adapter(base, Site.AFTER_MLP)):
        with torch.no_grad():
            halves = halves_of(model)
            hidden = halves.hidden_states(
                input_ids=ids, attention_mask=mask, position_ids=None, labels=None
            )
            wanted = model(input_ids=ids, attention_mask=mask).logits
            assert hidden.shape == (2, 6, 32)
            assert torch.equal(halves.logits(hidden), wanted)
            torch.testing.assert_close(halves.logits(hidden[1, 2:4]), wanted[1, 2:4])


def test_memory_is_in_the_hidden_states():
    adapter, ids = working_adapter(llama(), Site.AFTER_MLP), token_ids(2, 6)
    states = {"input_ids": ids, "attention_mask": None, "position_ids": None, "labels": None}
    halves = halves_of(adapter)
    assert isinstance(halves, CausalLM)
    with_memory = halves.hidden_states(**states)
    with adapter.disabled():
        assert (halves.hidden_states(**states) - with_memory).abs().max() > 0.1


def test_capped_logits_are_capped():
    base, ids = llama(), token_ids(1, 3)
    plain = logits(base, ids)
    base.config.final_logit_softcapping = 2.0
    halves = halves_of(base)
    with torch.no_grad():
        hidden = halves.hidden_states(
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=None, labels=None
        )
        torch.testing.assert_close(halves.logits(hidden), torch.tanh(plain / 2.0) * 2.0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_learned_prefix_is_refused():
    """It stands before the backbone's input: losses made of two halves would not see it."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prefixed = peft.get_peft_model(llama(), config)
    expected = (
        r"halves_of: a model of peft must change layers, .* got peft_type='.*PREFIX_TUNING'; "
    )
    with pytest.raises(ValueError, match=expected):
        halves_of(prefixed)
