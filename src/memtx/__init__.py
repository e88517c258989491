"""memtx: a learned, addressable, separate memory for transformers."""

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
from memtx.spec import build, describe, load_adapter, save, to_source
from memtx.transformer import Linear, LowRankLinear, RMSNorm, SwiGLU

__all__ = [
    "FactorizedMemoryBank",
    "FromRows",
    "Insertion",
    "Linear",
    "LowRankLinear",
    "MemoryAdapter",
    "MemoryCrossAttention",
    "Normal",
    "QuantizedMemoryBank",
    "RMSNorm",
    "ReducedDimMemoryBank",
    "Residual",
    "Site",
    "StandardMemoryBank",
    "SwiGLU",
    "Zeros",
    "build",
    "describe",
    "load_adapter",
    "save",
    "to_source",
]
