"""Memory in a frozen Llama: Llama 3.2 1B spelled out, and one sized by any small base."""

from pathlib import Path

from torch import nn

from factories.teaching import Lesson, pretrained_lesson
from memtx import (
    Insertion,
    Linear,
    MemoryAdapter,
    MemoryCrossAttention,
    Normal,
    Residual,
    RMSNorm,
    Site,
    StandardMemoryBank,
    Zeros,
)
from memtx.train import DataParallel, SingleProcess


def memory_for_llama_3_2_1b(base: nn.Module) -> MemoryAdapter:
    """Put 2,048 memory tokens, read in layers 0 to 3 and 12 to 15, into Llama 3.2 1B."""
    bank = StandardMemoryBank(num_memory_tokens=2_048, dim=2_048, init=Normal(std=1.0))

    def linear(in_features: int, out_features: int) -> Linear:
        return Linear(
            in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.02)
        )

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=2_048, eps=1e-5),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(2_048, 2_048),
                k_proj=linear(2_048, 512),
                v_proj=linear(2_048, 512),
                o_proj=Linear(in_features=2_048, out_features=2_048, bias=False, init=Zeros()),
                num_heads=32,
                num_kv_heads=8,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=2, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=3, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=12, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=13, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=14, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=15, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
        ],
    )


def llama_3_2_1b(*, folder: Path, seed: int, parallelism: SingleProcess | DataParallel) -> Lesson:
    """Load Llama 3.2 1B in bfloat16 and compose the teaching of 200 invented facts."""
    return pretrained_lesson(
        base_name="meta-llama/Llama-3.2-1B",
        memory=memory_for_llama_3_2_1b,
        folder=folder,
        seed=seed,
        parallelism=parallelism,
    )


def memory_sized_by(base: nn.Module) -> MemoryAdapter:
    """Put 512 memory tokens into every layer of a small base, sized by its configuration.

    Queries and keys start large, so the memory is read sharply from the first step: a position
    that no fact concerns then learns to read little, which halves the harm to other text.
    """
    dim: int = base.config.hidden_size  # type: ignore[union-attr, assignment]
    depth: int = base.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    bank = StandardMemoryBank(num_memory_tokens=512, dim=dim, init=Normal(std=1.0))

    def linear(std: float) -> Linear:
        return Linear(in_features=dim, out_features=dim, bias=False, init=Normal(std=std))

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=dim, eps=1e-5),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(dim**-0.5),
                k_proj=linear(dim**-0.5),
                v_proj=linear(dim**-0.5),
                o_proj=Linear(in_features=dim, out_features=dim, bias=False, init=Zeros()),
                num_heads=2,
                num_kv_heads=2,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=Site.AFTER_ATTENTION, sublayers=[recall()])
            for layer in range(depth)
        ],
    )
