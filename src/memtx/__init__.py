"""memtx: a learned, addressable, separate memory for transformers."""

from memtx.adapters import (
    Insertion,
    InTurn,
    Memory,
    MemoryAdapter,
    MemoryLibrary,
    Site,
    Together,
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
    StandardMemoryBank,
    TokenRouting,
    write_bank,
    write_rows,
)
from memtx.models import (
    MemoryTransformer,
    TensorMemoryLM,
)
from memtx.spec import (
    build,
    describe,
    load,
    load_adapter,
    load_memory,
    save,
    save_named,
    to_source,
    verify,
)
from memtx.tensor import (
    DecayingTensorMemory,
    LinearMemoryAttention,
    MultiHeadMemory,
    TensorMemory,
    TensorMemoryBlock,
    TensorMemoryConfig,
    TensorMemoryState,
    TensorMemoryStates,
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
    SelfAttention,
    SquaredReLU,
    SwiGLU,
    TiedHead,
    TokenEmbedding,
)

__all__ = [
    "GELU",
    "ChapterRouter",
    "ChapterVarianceLoss",
    "DecayingTensorMemory",
    "FactorizedMemoryBank",
    "FeedForward",
    "FromRows",
    "HybridRouting",
    "InTurn",
    "IndependentSoftmax",
    "Insertion",
    "JointSoftmax",
    "LayerNorm",
    "Linear",
    "LinearMemoryAttention",
    "LoadBalanceLoss",
    "LowRankLinear",
    "MappedMemoryBank",
    "Memory",
    "MemoryAdapter",
    "MemoryBlock",
    "MemoryCrossAttention",
    "MemoryLibrary",
    "MemoryTransformer",
    "MultiHeadMemory",
    "NoPositions",
    "Normal",
    "OffloadedMemoryBank",
    "PromptRouting",
    "QuantizedMemoryBank",
    "RMSNorm",
    "ReLU",
    "ReducedDimMemoryBank",
    "Residual",
    "RollingRouting",
    "RotaryEmbedding",
    "RoutedMemoryCrossAttention",
    "RouterZLoss",
    "SelfAttention",
    "SequenceRouting",
    "Site",
    "SquaredReLU",
    "StandardMemoryBank",
    "SwiGLU",
    "TensorMemory",
    "TensorMemoryBlock",
    "TensorMemoryConfig",
    "TensorMemoryLM",
    "TensorMemoryState",
    "TensorMemoryStates",
    "TiedHead",
    "Together",
    "TokenEmbedding",
    "TokenRouting",
    "Zeros",
    "build",
    "describe",
    "load",
    "load_adapter",
    "load_memory",
    "save",
    "save_named",
    "to_source",
    "verify",
    "write_bank",
    "write_rows",
]


def __getattr__(name: str) -> object:
    """Import the Hugging Face face when it is asked for: transformers is slow to load."""
    if name in {"MemtxConfig", "MemtxForCausalLM"}:
        from memtx import huggingface

        return getattr(huggingface, name)
    raise AttributeError(f"module 'memtx' has no attribute {name!r}")
