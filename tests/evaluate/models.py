"""Every kind of model that is evaluated, each with a memory or an adapter that speaks."""

import copy

import torch
from peft import LoraConfig, get_peft_model

from memtx import (
    Insertion,
    Memory,
    MemoryBlock,
    MemoryLibrary,
    MemoryTransformer,
    PromptRouting,
    RMSNorm,
    RollingRouting,
    RotaryEmbedding,
    SelfAttention,
    Site,
    TiedHead,
    TokenEmbedding,
)
from memtx.blocks import Residual
from memtx.initialize import Normal
from memtx.models.face import Generator
from tests import parts
from tests.parts import linear
from tests.tensor.parts import language_model
from tests.train import tiny

VOCABULARY = 320


def bare():
    return tiny.base(seed=0)


def adapter():
    made = tiny.adapter(model=tiny.base(seed=0)).eval()
    tiny.perturb(made)
    return made


def routed():
    return tiny.routed_adapter(model=tiny.base(seed=0), strategy=RollingRouting(window=3)).eval()


def prompted():
    return tiny.routed_adapter(model=tiny.base(seed=0), strategy=PromptRouting()).eval()


def memory():
    bank = parts.bank_of(24, tiny.WIDTH)
    read = parts.recall(bank, tiny.WIDTH)
    place = Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=[read])
    made = Memory(banks=[bank], insertions=[place])
    parts.randomize(made.parameters())
    return made


def two_memories():
    """Two memories, one of which everyone reads."""
    torch.manual_seed(3)
    memories = {"anna": memory(), "bob": memory()}
    made = MemoryLibrary(base=tiny.base(seed=0), memories=memories).eval()
    made.activate("anna")
    return made


def lora():
    """LoRA in the projections and in the head."""
    torch.manual_seed(0)
    targets = ["q_proj", "down_proj", "lm_head"]
    config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    return get_peft_model(copy.deepcopy(tiny.base(seed=0)), config).eval()


def whole():
    """A composed model that reads a memory."""
    dim = 16
    bank = parts.bank_of(12, dim)
    rotary = RotaryEmbedding(head_dim=4, max_positions=256, base=10_000.0)
    embedding = TokenEmbedding(vocab_size=VOCABULARY, dim=dim, init=Normal(std=1.0))

    def attend():
        attention = SelfAttention(
            q_proj=linear(dim, dim),
            k_proj=linear(dim, dim // 2),
            v_proj=linear(dim, dim // 2),
            o_proj=linear(dim, dim),
            num_heads=4,
            num_kv_heads=2,
            rotary=rotary,
            dropout=0.0,
        )
        return Residual(norm=RMSNorm(dim=dim, eps=1e-5), sublayer=attention)

    made = MemoryTransformer(
        embedding=embedding,
        banks=[bank],
        layers=[
            MemoryBlock(sublayers=[attend(), parts.recall(bank, dim), parts.think(dim)])
            for _ in range(2)
        ],
        norm=RMSNorm(dim=dim, eps=1e-5),
        head=TiedHead(embedding=embedding),
    ).eval()
    parts.randomize(made.parameters())
    embedding.weight.data.normal_()
    return made


def faced():
    """A composed model behind the face of transformers."""
    return Generator(model=whole()).eval()


def tensor_model():
    return language_model(VOCABULARY, 8)


KINDS = {
    each.__name__: each
    for each in (bare, adapter, routed, two_memories, lora, whole, faced, tensor_model)
}
"""Kinds whose numbers can be had from a plain call of the model."""
SWITCHED = {each.__name__: each for each in (adapter, routed, two_memories, lora)}
"""Kinds that can be switched off."""
