"""The memories that `adapter_step` puts into a base: read whole, and routed."""

from collections.abc import Callable

from torch import nn

from memtx import (
    ChapterRouter,
    Insertion,
    JointSoftmax,
    Linear,
    LoadBalanceLoss,
    MemoryAdapter,
    MemoryCrossAttention,
    Normal,
    Residual,
    RMSNorm,
    RoutedMemoryCrossAttention,
    RouterZLoss,
    SequenceRouting,
    Site,
    StandardMemoryBank,
    Zeros,
)

Memory = Callable[[nn.Module], MemoryAdapter]


def linear(in_features: int, out_features: int) -> Linear:
    """Give a map without bias."""
    return Linear(
        in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.02)
    )


def memory_in_layers(
    *,
    base: nn.Module,
    layers: list[int],
    num_memory_tokens: int,
    dim: int,
    kv_dim: int,
    num_heads: int,
    num_kv_heads: int,
) -> MemoryAdapter:
    """Put one bank, read after the attention of some layers, into a base."""
    bank = StandardMemoryBank(num_memory_tokens=num_memory_tokens, dim=dim, init=Normal(std=1.0))

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=dim, eps=1e-6),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(dim, dim),
                k_proj=linear(dim, kv_dim),
                v_proj=linear(dim, kv_dim),
                o_proj=Linear(in_features=dim, out_features=dim, bias=False, init=Zeros()),
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=Site.AFTER_ATTENTION, sublayers=[recall()])
            for layer in layers
        ],
    )


def routed_in_layers(
    *,
    base: nn.Module,
    layers: list[int],
    num_chapters: int,
    tokens_per_chapter: int,
    chapters_read: int,
    dim: int,
    kv_dim: int,
    num_heads: int,
    num_kv_heads: int,
) -> MemoryAdapter:
    """Put one bank of chapters into a base; each row reads some of them, one for all rows."""
    bank = StandardMemoryBank(
        num_memory_tokens=num_chapters * tokens_per_chapter, dim=dim, init=Normal(std=1.0)
    )

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=dim, eps=1e-6),
            sublayer=RoutedMemoryCrossAttention(
                bank=bank,
                router=ChapterRouter(
                    num_chapters=num_chapters,
                    num_shared_chapters=1,
                    top_k=chapters_read - 1,
                    routed_scale=2.5,
                    scorer=linear(dim, num_chapters - 1),
                    strategy=SequenceRouting(),
                    losses=[LoadBalanceLoss(weight=0.01), RouterZLoss(weight=0.001)],
                ),
                mixing=JointSoftmax(),
                q_proj=linear(dim, dim),
                k_proj=linear(dim, kv_dim),
                v_proj=linear(dim, kv_dim),
                o_proj=Linear(in_features=dim, out_features=dim, bias=False, init=Zeros()),
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=Site.AFTER_ATTENTION, sublayers=[recall()])
            for layer in layers
        ],
    )
