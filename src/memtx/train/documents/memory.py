"""The memory that `memtx learn` puts into a base, every value spelled out."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from memtx.adapters import Insertion, MemoryAdapter, Site
from memtx.blocks import Residual
from memtx.initialize import FromRows, Normal, Zeros
from memtx.memory import MemoryCrossAttention, SinkMemoryBank, StandardMemoryBank
from memtx.transformer import Linear, RMSNorm, ScaledHeads, UnitHeads

# A deeper base gets readers in so many layers, at even distances.
MOST_READERS = 8
HEAD_DIM = 64
# Cosines times this are the scores that readers start with.
SCALE = 12.0
NUM_SINKS = 64


def memory_for_text(base: Any, *, start: Float[Tensor, "memory dim"]) -> MemoryAdapter:
    """Put a memory into a base: one bank, sharply read after the attention of up to 8 layers.

    Queries and keys have length 1 and a learned scale; 64 empty memory tokens let a position that
    the text does not concern read nothing. Memory tokens start from what the base makes of the
    text, so that queries meet keys of their own kind from the first step.

    Args:
        base: the pretrained model; it is frozen.
        start: where the memory tokens start, of the base's width (`memtx.usage.text_states`).

    Source: the recipe of docs/learning.md.
    """
    config = base.config.get_text_config()
    dim, depth = int(config.hidden_size), int(config.num_hidden_layers)
    # A narrow base has two heads all the same.
    num_heads = max(2, dim // HEAD_DIM)
    width = dim // num_heads * num_heads
    bank = SinkMemoryBank(
        num_sinks=NUM_SINKS,
        stored=StandardMemoryBank(
            num_memory_tokens=start.shape[0], dim=start.shape[1], init=FromRows(tensor=start)
        ),
    )

    def linear() -> Linear:
        return Linear(in_features=dim, out_features=width, bias=False, init=Normal(std=dim**-0.5))

    def unit() -> UnitHeads:
        return UnitHeads(projection=linear(), num_heads=num_heads, eps=1e-6)

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=dim, eps=1e-5),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=ScaledHeads(
                    projection=unit(),
                    num_heads=num_heads,
                    scale=SCALE * (width // num_heads) ** 0.5,
                ),
                k_proj=unit(),
                v_proj=linear(),
                o_proj=Linear(in_features=width, out_features=dim, bias=False, init=Zeros()),
                num_heads=num_heads,
                num_kv_heads=num_heads,
                dropout=0.0,
            ),
        )

    count = min(depth, MOST_READERS)
    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(
                layer=number * depth // count, site=Site.AFTER_ATTENTION, sublayers=[recall()]
            )
            for number in range(count)
        ],
    )
