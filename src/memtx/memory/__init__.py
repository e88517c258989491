"""Banks of memory tokens and the attention that reads them."""

from memtx.memory.bank import StandardMemoryBank
from memtx.memory.cross_attention import MemoryCrossAttention

__all__ = ["MemoryCrossAttention", "StandardMemoryBank"]
