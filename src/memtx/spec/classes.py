"""The explicit table of classes a spec may name."""

from enum import Enum

from memtx.adapters import Insertion, MemoryAdapter, Site
from memtx.blocks import Residual
from memtx.initialize import FromRows, Normal, Zeros
from memtx.memory import (
    FactorizedMemoryBank,
    MemoryCrossAttention,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    StandardMemoryBank,
)
from memtx.transformer import Linear, LowRankLinear, RMSNorm, SwiGLU

CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        FactorizedMemoryBank,
        FromRows,
        Insertion,
        Linear,
        LowRankLinear,
        MemoryAdapter,
        MemoryCrossAttention,
        Normal,
        QuantizedMemoryBank,
        RMSNorm,
        ReducedDimMemoryBank,
        Residual,
        StandardMemoryBank,
        SwiGLU,
        Zeros,
    )
}

ENUMS: dict[str, type[Enum]] = {Site.__name__: Site}
