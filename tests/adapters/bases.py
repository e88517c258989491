"""Tiny bases of every supported architecture, and adapters on them."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from memtx import Insertion, MemoryAdapter, Site
from tests.parts import bank_of, randomize, recall, think

ARCHITECTURES = [LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM]
SITES = list(Site)
HIDDEN, LAYERS, VOCABULARY, PADDING = 32, 3, 64, 0
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": None,
}

each_architecture = pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=lambda cls: cls.__name__
)
each_site = pytest.mark.parametrize("site", SITES, ids=lambda site: site.value)


def tiny_base(architecture: type[PreTrainedModel]) -> PreTrainedModel:
    return architecture(architecture.config_class(**SIZES)).eval()


def llama():
    return tiny_base(LlamaForCausalLM)


def insertions_at(site, bank):
    """Memory in the first and last layer, two sub-layers in the last."""
    return [
        Insertion(layer=0, site=site, sublayers=[recall(bank, HIDDEN)]),
        Insertion(layer=LAYERS - 1, site=site, sublayers=[recall(bank, HIDDEN), think(HIDDEN)]),
    ]


def fresh_adapter(base, site):
    bank = bank_of(7, HIDDEN)
    return MemoryAdapter(base=base, banks=[bank], insertions=insertions_at(site, bank)).eval()


def working_adapter(base, site):
    """An adapter whose memory changes the logits."""
    adapter = fresh_adapter(base, site)
    randomize(adapter.memory_parameters())
    return adapter


def token_ids(batch, length):
    return torch.randint(2, VOCABULARY, (batch, length))


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids).logits


@dataclass(frozen=True, kw_only=True)
class State:
    """All of a model that an adapter could leave changed."""

    modules: list[tuple[str, int]]
    hooks: list[tuple[str, int]]
    flags: dict[str, bool]
    tensors: dict[str, torch.Tensor]
    attributes: dict[str, list[str]]


def state_of(model: nn.Module) -> State:
    hooked = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.named_modules())
    return State(
        modules=[(name, id(module)) for name, module in modules],
        hooks=[(name, len(getattr(module, kind))) for name, module in modules for kind in hooked],
        flags={name: p.requires_grad for name, p in model.named_parameters()},
        tensors=copy.deepcopy(dict(model.state_dict())),
        attributes={name: sorted(vars(module)) for name, module in modules},
    )


def expect_same(now: State, before: State) -> None:
    assert now.modules == before.modules
    assert now.hooks == before.hooks
    assert now.flags == before.flags
    assert now.attributes == before.attributes
    assert list(now.tensors) == list(before.tensors)
    for name, tensor in before.tensors.items():
        assert torch.equal(now.tensors[name], tensor), name
