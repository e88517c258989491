"""The contract table: one line for each component of memtx that can stand alone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from memtx import (
    FactorizedMemoryBank,
    Insertion,
    Linear,
    LowRankLinear,
    MemoryCrossAttention,
    Normal,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    Residual,
    RMSNorm,
    Site,
    StandardMemoryBank,
    SwiGLU,
)
from memtx.interfaces import Branch, MemoryBank, Projection, Sublayer
from tests.parts import bank_of, linear, mlp, read_arguments, reader, recall, think


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A component, how to make it, what it maps to what, and what it can be passed as.

    `arguments` makes fresh ones each time; `takes` is None for a call without an input.
    """

    cls: Callable[..., nn.Module]
    arguments: Callable[[], dict[str, object]]
    takes: tuple[int, ...] | None
    gives: tuple[int, ...]
    interface: type | None

    def make(self) -> nn.Module:
        return self.cls(**self.arguments())


def line(cls, arguments, takes, gives, interface):
    return Contract(cls=cls, arguments=arguments, takes=takes, gives=gives, interface=interface)


def run(part: nn.Module, x: Tensor | None) -> Tensor:
    return part() if x is None else part(x)


STREAM = (2, 3, 8)

# fmt: off
CONTRACTS = [
    line(Linear, lambda: {"in_features": 6, "out_features": 4, "bias": True, "init": Normal(std=0.3)}, (2, 3, 6), (2, 3, 4), Projection),  # noqa: E501
    line(LowRankLinear, lambda: {"in_features": 6, "out_features": 4, "rank": 2, "init": Normal(std=0.3)}, (5, 6), (5, 4), Projection),  # noqa: E501
    line(RMSNorm, lambda: {"dim": 8, "eps": 1e-5}, STREAM, STREAM, Sublayer),
    line(SwiGLU, lambda: {"gate_proj": linear(8, 12), "up_proj": linear(8, 12), "down_proj": linear(12, 8)}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(StandardMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 4, "init": Normal(std=1.0)}, None, (7, 4), MemoryBank),  # noqa: E501
    line(FactorizedMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 4, "rank": 2, "init": Normal(std=1.0)}, None, (7, 4), MemoryBank),  # noqa: E501
    line(ReducedDimMemoryBank, lambda: {"num_memory_tokens": 7, "rank": 2, "init": Normal(std=1.0)}, None, (7, 2), MemoryBank),  # noqa: E501
    line(QuantizedMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 40, "bits": 8, "block_size": 64}, None, (7, 40), MemoryBank),  # noqa: E501
    line(QuantizedMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 40, "bits": 4, "block_size": 128}, None, (7, 40), MemoryBank),  # noqa: E501
    line(MemoryCrossAttention, lambda: read_arguments(8), STREAM, STREAM, Sublayer),
    line(Residual, lambda: {"norm": RMSNorm(dim=8, eps=1e-5), "sublayer": mlp(8)}, STREAM, STREAM, Branch),  # noqa: E501
    line(Residual, lambda: {"norm": RMSNorm(dim=8, eps=1e-5), "sublayer": reader(bank_of(7, 8), 8)}, STREAM, STREAM, Branch),  # noqa: E501
    line(Insertion, lambda: {"layer": 1, "site": Site.AFTER_MLP, "sublayers": [recall(bank_of(7, 8), 8), think(8)]}, STREAM, STREAM, None),  # noqa: E501
]
# fmt: on
