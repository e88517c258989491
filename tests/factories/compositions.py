"""The ready compositions, and bases of the sizes that they are written for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from factories.llama_adapter import llama_3_2_1b, memory_for_llama_3_2_1b
from factories.qwen_adapter import (
    memory_for_0_5b,
    memory_for_1_5b,
    memory_for_tiny,
    qwen2_5_0_5b,
    qwen2_5_1_5b,
)
from factories.teaching import Lesson
from memtx import MemoryAdapter


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A composition, its base's configuration, and what must come out."""

    memory: Callable[[nn.Module], MemoryAdapter]
    architecture: type[PreTrainedModel]
    sizes: dict[str, Any]
    base_parameters: int
    num_memory_tokens: int
    layers: list[int]
    trainable: int


QWEN_1_5B = Composition(
    memory=memory_for_1_5b,
    architecture=Qwen2ForCausalLM,
    sizes={
        "hidden_size": 1_536,
        "intermediate_size": 8_960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    base_parameters=1_543_714_304,
    num_memory_tokens=2_048,
    layers=[0, 1, 2, 3, 4, 23, 24, 25, 26, 27],
    # The bank, and ten times: norm, q, k, v, o.
    trainable=3_145_728 + 10 * (1_536 + 2_359_296 + 393_216 + 393_216 + 2_359_296),
)
QWEN_0_5B = Composition(
    memory=memory_for_0_5b,
    architecture=Qwen2ForCausalLM,
    sizes={
        "hidden_size": 896,
        "intermediate_size": 4_864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    base_parameters=494_032_768,
    num_memory_tokens=2_048,
    layers=[0, 1, 2, 3, 4, 19, 20, 21, 22, 23],
    trainable=1_835_008 + 10 * (896 + 802_816 + 114_688 + 114_688 + 802_816),
)
QWEN_TINY = Composition(
    memory=memory_for_tiny,
    architecture=Qwen2ForCausalLM,
    sizes={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2_048,
        "tie_word_embeddings": True,
    },
    base_parameters=1_050_752,
    num_memory_tokens=256,
    layers=[0, 1, 2, 3],
    trainable=32_768 + 4 * (128 + 16_384 + 16_384 + 16_384 + 16_384),
)
LLAMA_1B = Composition(
    memory=memory_for_llama_3_2_1b,
    architecture=LlamaForCausalLM,
    sizes={
        "hidden_size": 2_048,
        "intermediate_size": 8_192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    base_parameters=1_235_814_400,
    num_memory_tokens=2_048,
    layers=[0, 1, 2, 3, 12, 13, 14, 15],
    trainable=4_194_304 + 8 * (2_048 + 4_194_304 + 1_048_576 + 1_048_576 + 4_194_304),
)

COMPOSITIONS = {
    "qwen-1.5b": QWEN_1_5B,
    "qwen-0.5b": QWEN_0_5B,
    "qwen-tiny": QWEN_TINY,
    "llama-1b": LLAMA_1B,
}
# What is loaded by its name on the hub.
PRETRAINED: dict[str, tuple[Callable[..., Lesson], Composition]] = {
    "Qwen/Qwen2.5-1.5B": (qwen2_5_1_5b, QWEN_1_5B),
    "Qwen/Qwen2.5-0.5B": (qwen2_5_0_5b, QWEN_0_5B),
    "meta-llama/Llama-3.2-1B": (llama_3_2_1b, LLAMA_1B),
}


def on_meta(composition: Composition) -> MemoryAdapter:
    """Compose a memory on a base of the real sizes, none of which takes memory here."""
    with torch.device("meta"):
        base = composition.architecture(composition.architecture.config_class(**composition.sizes))
        return composition.memory(base)


def save_thin_base(composition: Composition, *, folder: Path, tokenizer: Any) -> None:
    """Save a base as wide and deep as a composition needs, and as thin as it can be otherwise."""
    configs = {Qwen2ForCausalLM: Qwen2Config, LlamaForCausalLM: LlamaConfig}
    thin = {"intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = configs[composition.architecture](
        **{**composition.sizes, **thin, "vocab_size": len(tokenizer)},
        head_dim=8,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.bfloat16,
    )
    composition.architecture(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
