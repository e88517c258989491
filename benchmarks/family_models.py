"""The bases that `adapter_families` times: every family memtx ships, at the same sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from memtx import Site


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of all bases, of what is read into them, and of what is timed."""

    name: str
    dim: int
    inner_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    reading_layers: list[int]
    num_memory_tokens: int
    batch: int
    length: int
    prompt: int
    new_tokens: int
    warm_up: int
    timed: int
    rounds: int
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Model:
    """A family as transformers names it, with what its configuration needs beside the sizes."""

    kind: str
    extra: Callable[[Size], dict[str, Any]]
    lora: list[str]
    site: Site


TINY = Size(
    name="tiny",
    dim=64,
    inner_dim=128,
    layers=4,
    heads=4,
    kv_heads=2,
    vocab_size=256,
    reading_layers=[0, 3],
    num_memory_tokens=64,
    batch=2,
    length=32,
    prompt=8,
    new_tokens=8,
    warm_up=2,
    timed=15,
    rounds=3,
    dtype=torch.float32,
)
FULL = Size(
    name="1.5b",
    dim=1_536,
    inner_dim=8_960,
    layers=28,
    heads=12,
    kv_heads=2,
    vocab_size=151_936,
    reading_layers=[0, 3, 6, 9, 12, 15, 18, 21, 24, 27],
    num_memory_tokens=2_048,
    batch=4,
    length=512,
    prompt=128,
    new_tokens=24,
    warm_up=2,
    timed=4,
    rounds=1,
    dtype=torch.bfloat16,
)
SIZES = {size.name: size for size in (TINY, FULL)}


def grouped(size: Size) -> dict[str, Any]:
    """Grouped heads of the usual width."""
    return {"num_key_value_heads": size.kv_heads}


def wide(size: Size) -> dict[str, Any]:
    """The same, for configurations that name the width of a head themselves."""
    return {**grouped(size), "head_dim": size.dim // size.heads}


def experts(size: Size) -> dict[str, Any]:
    """Eight experts that together are as wide as the MLP of the others; two see a token."""
    inner = {"num_experts": 8, "num_experts_per_tok": 2}
    return {**wide(size), **inner, "moe_intermediate_size": size.inner_dim // 8}


def usual(kind: str, extra: Callable[[Size], dict[str, Any]]) -> Model:
    """A family with separate projections and a place after the attention."""
    return Model(kind=kind, extra=extra, lora=["q_proj", "v_proj"], site=Site.AFTER_ATTENTION)


def neox(parallel: bool) -> Model:
    """GPT-NeoX, whose projections are one; by default attention and MLP run in parallel."""
    return Model(
        kind="gpt_neox",
        extra=lambda _: {"use_parallel_residual": parallel},
        lora=["query_key_value"],
        site=Site.AFTER_MLP if parallel else Site.AFTER_ATTENTION,
    )


MODELS = {
    "Llama": usual("llama", wide),
    "Qwen2": usual("qwen2", grouped),
    "Qwen3": usual("qwen3", wide),
    "Mistral": usual("mistral", wide),
    "Gemma2": usual("gemma2", wide),
    "Gemma3": usual("gemma3_text", wide),
    "Phi3": Model(kind="phi3", extra=grouped, lora=["qkv_proj"], site=Site.AFTER_ATTENTION),
    "Olmo2": usual("olmo2", grouped),
    "SmolLM3": usual("smollm3", grouped),
    "GPT-NeoX-sequential": neox(parallel=False),
    "GPT-NeoX-parallel": neox(parallel=True),
    "Qwen3-MoE": usual("qwen3_moe", experts),
}


def base_of(model: Model, size: Size, device: torch.device) -> nn.Module:
    """Make a base with random weights, on the device from the start."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model.kind,
        vocab_size=size.vocab_size,
        hidden_size=size.dim,
        intermediate_size=size.inner_dim,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=4_096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **model.extra(size),
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=size.dtype)
