"""The ordinary parts of a transformer."""

from memtx.transformer.linear import Linear, LowRankLinear
from memtx.transformer.norm import RMSNorm
from memtx.transformer.swiglu import SwiGLU

__all__ = ["Linear", "LowRankLinear", "RMSNorm", "SwiGLU"]
