"""Memory banks, the routers that choose from them, and what reads them."""

from memtx.memory.bank import StandardMemoryBank
from memtx.memory.cross_attention import MemoryCrossAttention
from memtx.memory.low_rank import FactorizedMemoryBank, ReducedDimMemoryBank
from memtx.memory.mapped import MappedMemoryBank
from memtx.memory.mapped_files import write_bank, write_rows
from memtx.memory.mixing import IndependentSoftmax, JointSoftmax
from memtx.memory.offloaded import OffloadedMemoryBank
from memtx.memory.quantized import QuantizedMemoryBank
from memtx.memory.routed_attention import RoutedMemoryCrossAttention
from memtx.memory.router import ChapterRouter, Routing
from memtx.memory.sink import SinkMemoryBank
from memtx.memory.strategies import PromptRouting, SequenceRouting, TokenRouting
from memtx.memory.windows import HybridRouting, RollingRouting

__all__ = [
    "ChapterRouter",
    "FactorizedMemoryBank",
    "HybridRouting",
    "IndependentSoftmax",
    "JointSoftmax",
    "MappedMemoryBank",
    "MemoryCrossAttention",
    "OffloadedMemoryBank",
    "PromptRouting",
    "QuantizedMemoryBank",
    "ReducedDimMemoryBank",
    "RollingRouting",
    "RoutedMemoryCrossAttention",
    "Routing",
    "SequenceRouting",
    "SinkMemoryBank",
    "StandardMemoryBank",
    "TokenRouting",
    "write_bank",
    "write_rows",
]
