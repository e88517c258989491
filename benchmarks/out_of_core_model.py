"""The model of the benchmark of banks out of core, and its sizes."""

from dataclasses import dataclass
from typing import Any

import torch

from memtx import (
    ChapterRouter,
    JointSoftmax,
    Linear,
    LowRankLinear,
    MemoryBlock,
    MemoryTransformer,
    Normal,
    Residual,
    RMSNorm,
    RollingRouting,
    RotaryEmbedding,
    RoutedMemoryCrossAttention,
    SelfAttention,
    SwiGLU,
    TiedHead,
    TokenEmbedding,
)

VOCABULARY = 8192


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the model, its bank and the larger banks, and how many tokens are generated."""

    dim: int
    layers: int
    tokens: int
    larger_tokens: int
    rank: int
    chapter: int
    larger_chapter: int
    top_k: int
    larger_top_k: int
    window: int
    places: int
    prompt: int
    generated: int
    chunk: int


SIZES = {
    "large": Size(
        dim=512,
        layers=8,
        tokens=2**20,
        larger_tokens=2**24,
        rank=256,
        chapter=64,
        larger_chapter=512,
        top_k=16,
        larger_top_k=4,
        window=64,
        places=512,
        prompt=128,
        generated=256,
        chunk=2**18,
    ),
    "small": Size(
        dim=64,
        layers=2,
        tokens=2**14,
        larger_tokens=2**18,
        rank=64,
        chapter=16,
        larger_chapter=64,
        top_k=4,
        larger_top_k=2,
        window=8,
        places=32,
        prompt=16,
        generated=24,
        chunk=2**14,
    ),
}


def linear(wide: int, narrow: int) -> Linear:
    return Linear(in_features=wide, out_features=narrow, bias=False, init=Normal(std=wide**-0.5))


def recall(bank: Any, size: Size, *, chapter: int, top_k: int) -> Residual:
    """A routed read in the width of the bank; the scorer is narrow, as chapters are many."""
    chapters = bank.num_memory_tokens // chapter
    router = ChapterRouter(
        num_chapters=chapters,
        num_shared_chapters=0,
        top_k=top_k,
        routed_scale=1.0,
        scorer=LowRankLinear(
            in_features=size.dim, out_features=chapters, rank=32, init=Normal(std=0.1)
        ),
        strategy=RollingRouting(window=size.window),
        losses=[],
    )
    read = RoutedMemoryCrossAttention(
        bank=bank,
        router=router,
        mixing=JointSoftmax(),
        q_proj=linear(size.dim, bank.dim),
        k_proj=linear(bank.dim, bank.dim),
        v_proj=linear(bank.dim, bank.dim),
        o_proj=linear(bank.dim, size.dim),
        num_heads=8,
        num_kv_heads=8,
        dropout=0.0,
    )
    return Residual(norm=RMSNorm(dim=size.dim, eps=1e-5), sublayer=read)


def block(bank: Any, size: Size, rotary: RotaryEmbedding, *, chapter: int, top_k: int) -> Any:
    """Attention, memory, MLP."""
    dim = size.dim
    attend = SelfAttention(
        q_proj=linear(dim, dim),
        k_proj=linear(dim, dim),
        v_proj=linear(dim, dim),
        o_proj=linear(dim, dim),
        num_heads=8,
        num_kv_heads=8,
        rotary=rotary,
        dropout=0.0,
    )
    think = SwiGLU(
        gate_proj=linear(dim, 3 * dim), up_proj=linear(dim, 3 * dim), down_proj=linear(3 * dim, dim)
    )
    return MemoryBlock(
        sublayers=[
            Residual(norm=RMSNorm(dim=dim, eps=1e-5), sublayer=attend),
            recall(bank, size, chapter=chapter, top_k=top_k),
            Residual(norm=RMSNorm(dim=dim, eps=1e-5), sublayer=think),
        ]
    )


def model_with(bank: Any, size: Size, *, chapter: int, top_k: int, device: torch.device) -> Any:
    """The same weights for every bank of one width; the bank is moved as a bank is."""
    torch.manual_seed(1)
    rotary = RotaryEmbedding(head_dim=size.dim // 8, max_positions=1024, base=10_000.0)
    embedding = TokenEmbedding(vocab_size=VOCABULARY, dim=size.dim, init=Normal(std=1.0))
    model = MemoryTransformer(
        embedding=embedding,
        banks=[bank],
        layers=[
            block(bank, size, rotary, chapter=chapter, top_k=top_k) for _ in range(size.layers)
        ],
        norm=RMSNorm(dim=size.dim, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )
    return model.to(device=device, dtype=torch.bfloat16).eval()
