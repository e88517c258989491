"""Every way of teaching trains about as much; rivals are measured as their library runs them."""

import copy

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.evidence import methods
from benchmarks.evidence.methods import Rates, learner
from benchmarks.evidence.rivals import HeldToCopy, Prefixed, with_lora
from memtx.adapters import halves_of
from memtx.train import LocalityLoss

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
MEMORIES = ["memory-dense", "memory-sharp", "memory-routed", "memory-sparse"]


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def padded_batch():
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    ids = torch.randint(1, 48, (2, 7))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.mark.parametrize("method", MEMORIES)
def test_a_memory_trains_about_as_much_as_a_lora(base, method):
    wanted = learner(base, method="lora", context=32).trainable
    made = learner(base, method=method, context=32)
    assert 0.85 * wanted <= made.trainable <= wanted
    groups = made.groups(Rates(bank=1e-3, rest=1e-3))
    held = sum(p.numel() for group in groups for p in group.parameters())
    unwritten = 0
    if made.num_written is not None:
        unwritten = made.bank.num_memory_tokens - methods.CHAPTER - made.num_written
    assert held - unwritten * 64 == made.trainable


def test_a_fresh_memory_changes_nothing(base):
    batch = padded_batch()
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = base(**ids).logits
    for method in [*MEMORIES, "lora", "full"]:
        made = learner(base, method=method, context=32).model.eval()
        assert torch.allclose(made(**ids).logits, expected, atol=1e-5), method


def test_a_prefix_leaves_room_for_what_is_read(base):
    made = learner(base, method="prefix", context=32)
    assert made.model.num_virtual_tokens == 96 - 32
    assert made.trainable == 64 * (2 * 2 * 2 * 16)


def test_a_prefix_is_read_as_its_library_reads_it(base):
    model = Prefixed(base=copy.deepcopy(base), num_virtual_tokens=5).eval()
    batch = padded_batch()
    halves = halves_of(model)
    hidden = halves.hidden_states(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=None,
        labels=None,
    )
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    real = batch["attention_mask"].bool()
    assert torch.allclose(halves.head(hidden)[real], own[real], atol=1e-5)
    bare = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert not torch.allclose(own[real], bare[real], atol=1e-2)


def test_a_copy_protects_as_what_can_be_switched_off(base):
    model = with_lora(copy.deepcopy(base), rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = padded_batch()
    held = {"name": "locality", "stream": "text", "weight": 1.0}
    found = HeldToCopy(**held, before=base).totals(model, batch)
    expected = LocalityLoss(**held, chunk=4).totals(model, batch)
    assert expected.item() > 0.01
    assert torch.allclose(found, expected, rtol=1e-4)
    assert HeldToCopy(**held, before=base).counts(model, batch).item() == 12


def test_a_prefix_has_no_place_in_packed_rows(base):
    model = Prefixed(base=copy.deepcopy(base), num_virtual_tokens=2)
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="packed rows have no place for a prefix"):
        halves_of(model).hidden_states(
            input_ids=ids, attention_mask=None, position_ids=ids, labels=None
        )
