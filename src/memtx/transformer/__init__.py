"""The ordinary parts of a transformer."""

from memtx.transformer.embedding import TiedHead, TokenEmbedding
from memtx.transformer.feed_forward import GELU, FeedForward, ReLU, SquaredReLU
from memtx.transformer.head_scales import ScaledHeads, UnitHeads
from memtx.transformer.linear import Linear, LowRankLinear
from memtx.transformer.norm import LayerNorm, RMSNorm
from memtx.transformer.positions import NoPositions, RotaryEmbedding
from memtx.transformer.self_attention import SelfAttention
from memtx.transformer.swiglu import SwiGLU

__all__ = [
    "GELU",
    "FeedForward",
    "LayerNorm",
    "Linear",
    "LowRankLinear",
    "NoPositions",
    "RMSNorm",
    "ReLU",
    "RotaryEmbedding",
    "ScaledHeads",
    "SelfAttention",
    "SquaredReLU",
    "SwiGLU",
    "TiedHead",
    "TokenEmbedding",
    "UnitHeads",
]
