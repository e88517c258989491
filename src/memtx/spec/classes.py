"""The explicit table of classes a spec may name."""

from enum import Enum

from memtx.adapters import (
    Insertion,
    MemoryAdapter,
    Site,
)
from memtx.blocks import (
    MemoryBlock,
    Residual,
)
from memtx.initialize import (
    FromRows,
    Normal,
    Zeros,
)
from memtx.losses import (
    ChapterVarianceLoss,
    LoadBalanceLoss,
    RouterZLoss,
)
from memtx.memory import (
    ChapterRouter,
    FactorizedMemoryBank,
    HybridRouting,
    IndependentSoftmax,
    JointSoftmax,
    MappedMemoryBank,
    MemoryCrossAttention,
    OffloadedMemoryBank,
    PromptRouting,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    RollingRouting,
    RoutedMemoryCrossAttention,
    SequenceRouting,
    SinkMemoryBank,
    StandardMemoryBank,
    TokenRouting,
)
from memtx.models import (
    MemoryTransformer,
    TensorMemoryLM,
)
from memtx.tensor import (
    DecayingTensorMemory,
    LinearMemoryAttention,
    MultiHeadMemory,
    TensorMemory,
    TensorMemoryBlock,
    TensorMemoryConfig,
)
from memtx.transformer import (
    GELU,
    FeedForward,
    LayerNorm,
    Linear,
    LowRankLinear,
    NoPositions,
    ReLU,
    RMSNorm,
    RotaryEmbedding,
    ScaledHeads,
    SelfAttention,
    SquaredReLU,
    SwiGLU,
    TiedHead,
    TokenEmbedding,
    UnitHeads,
)

CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        ChapterRouter,
        ChapterVarianceLoss,
        DecayingTensorMemory,
        FactorizedMemoryBank,
        FeedForward,
        FromRows,
        GELU,
        HybridRouting,
        IndependentSoftmax,
        Insertion,
        JointSoftmax,
        LayerNorm,
        Linear,
        LinearMemoryAttention,
        LoadBalanceLoss,
        LowRankLinear,
        MappedMemoryBank,
        MemoryAdapter,
        MemoryBlock,
        MemoryCrossAttention,
        MemoryTransformer,
        MultiHeadMemory,
        NoPositions,
        Normal,
        OffloadedMemoryBank,
        PromptRouting,
        QuantizedMemoryBank,
        RMSNorm,
        ReLU,
        ReducedDimMemoryBank,
        Residual,
        RollingRouting,
        RotaryEmbedding,
        RoutedMemoryCrossAttention,
        RouterZLoss,
        ScaledHeads,
        SelfAttention,
        SequenceRouting,
        SinkMemoryBank,
        SquaredReLU,
        StandardMemoryBank,
        SwiGLU,
        TensorMemory,
        TensorMemoryBlock,
        TensorMemoryConfig,
        TensorMemoryLM,
        TiedHead,
        TokenEmbedding,
        TokenRouting,
        UnitHeads,
        Zeros,
    )
}

ENUMS: dict[str, type[Enum]] = {Site.__name__: Site}
