"""Banks of memory tokens and the attention that reads them."""

from memtx.memory.bank import StandardMemoryBank
from memtx.memory.cross_attention import MemoryCrossAttention
from memtx.memory.low_rank import FactorizedMemoryBank, ReducedDimMemoryBank
from memtx.memory.quantized import QuantizedMemoryBank

__all__ = [
    "FactorizedMemoryBank",
    "MemoryCrossAttention",
    "QuantizedMemoryBank",
    "ReducedDimMemoryBank",
    "StandardMemoryBank",
]
