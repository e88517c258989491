"""The contract table: one line for each component of memtx that can stand alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memtx import (
    GELU,
    ChapterRouter,
    FactorizedMemoryBank,
    FeedForward,
    HybridRouting,
    IndependentSoftmax,
    Insertion,
    JointSoftmax,
    LayerNorm,
    Linear,
    LinearMemoryAttention,
    LowRankLinear,
    MappedMemoryBank,
    MemoryBlock,
    MemoryCrossAttention,
    MemoryTransformer,
    NoPositions,
    Normal,
    OffloadedMemoryBank,
    PromptRouting,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    ReLU,
    Residual,
    RMSNorm,
    RollingRouting,
    RoutedMemoryCrossAttention,
    ScaledHeads,
    SelfAttention,
    SequenceRouting,
    SinkMemoryBank,
    Site,
    SquaredReLU,
    StandardMemoryBank,
    SwiGLU,
    TensorMemoryBlock,
    TensorMemoryLM,
    TiedHead,
    TokenEmbedding,
    TokenRouting,
    UnitHeads,
)
from memtx.interfaces import Branch, DistantBank, MemoryBank, Norm, Projection, Sublayer
from memtx.memory import Routing
from tests.models import stacks
from tests.models.stacks import ROTARY, VOCABULARY, attention_arguments
from tests.parts import bank_of, linear, mlp, read_arguments, reader, recall, think
from tests.routing import read_arguments as routed_arguments
from tests.routing import router_arguments
from tests.tensor import parts as tensor


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A component, how to make it, what it maps to what, and what it can be passed as.

    `arguments` makes fresh ones each time, `takes` an input; it is None for a call without one.
    """

    cls: Callable[..., nn.Module]
    arguments: Callable[[], dict[str, object]]
    takes: Callable[[], Tensor] | None
    gives: tuple[int, ...]
    interface: type | None

    def make(self) -> nn.Module:
        return self.cls(**self.arguments())


def line(cls, arguments, takes, gives, interface):
    """A component that maps numbers of one shape to another, or gives numbers without an input."""
    make = None if takes is None else partial(torch.randn, takes)
    return Contract(cls=cls, arguments=arguments, takes=make, gives=gives, interface=interface)


def words(cls, arguments, gives):
    """A component that maps token ids."""
    ids = partial(torch.randint, 0, VOCABULARY, (2, 3))
    return Contract(cls=cls, arguments=arguments, takes=ids, gives=gives, interface=None)


def run(part: nn.Module, x: Tensor | None) -> Tensor:
    return compared(part() if x is None else part(x))


def compared(answer: Any) -> Tensor:
    """The tensor of an answer that is compared: logits of a model, weights of a router."""
    if isinstance(answer, Routing):
        return answer.log_weights
    return answer if isinstance(answer, Tensor) else answer.logits


STREAM = (2, 3, 8)
LOGITS = (2, 3, VOCABULARY)

# fmt: off
CONTRACTS = [
    line(Linear, lambda: {"in_features": 6, "out_features": 4, "bias": True, "init": Normal(std=0.3)}, (2, 3, 6), (2, 3, 4), Projection),  # noqa: E501
    line(LowRankLinear, lambda: {"in_features": 6, "out_features": 4, "rank": 2, "init": Normal(std=0.3)}, (5, 6), (5, 4), Projection),  # noqa: E501
    line(UnitHeads, lambda: {"projection": linear(6, 4), "num_heads": 2, "eps": 1e-6}, (2, 3, 6), (2, 3, 4), Projection),  # noqa: E501
    line(ScaledHeads, lambda: {"projection": linear(6, 4), "num_heads": 2, "scale": 4.0}, (2, 3, 6), (2, 3, 4), Projection),  # noqa: E501
    line(RMSNorm, lambda: {"dim": 8, "eps": 1e-5}, STREAM, STREAM, Norm),
    line(LayerNorm, lambda: {"dim": 8, "eps": 1e-5}, STREAM, STREAM, Norm),
    line(SwiGLU, lambda: {"gate_proj": linear(8, 12), "up_proj": linear(8, 12), "down_proj": linear(12, 8)}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(FeedForward, lambda: {"up_proj": linear(8, 12), "activation": GELU(), "down_proj": linear(12, 8)}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(FeedForward, lambda: {"up_proj": linear(8, 12), "activation": ReLU(), "down_proj": linear(12, 8)}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(FeedForward, lambda: {"up_proj": linear(8, 12), "activation": SquaredReLU(), "down_proj": linear(12, 8)}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(SelfAttention, lambda: attention_arguments(ROTARY), STREAM, STREAM, Sublayer),
    line(SelfAttention, lambda: attention_arguments(NoPositions()), STREAM, STREAM, Sublayer),
    words(TokenEmbedding, lambda: {"vocab_size": VOCABULARY, "dim": 8, "init": Normal(std=0.3)}, STREAM),  # noqa: E501
    line(TiedHead, lambda: {"embedding": TokenEmbedding(vocab_size=VOCABULARY, dim=8, init=Normal(std=0.3))}, STREAM, LOGITS, Projection),  # noqa: E501
    line(StandardMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 4, "init": Normal(std=1.0)}, None, (7, 4), MemoryBank),  # noqa: E501
    line(FactorizedMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 4, "rank": 2, "init": Normal(std=1.0)}, None, (7, 4), MemoryBank),  # noqa: E501
    line(ReducedDimMemoryBank, lambda: {"num_memory_tokens": 7, "rank": 2, "init": Normal(std=1.0)}, None, (7, 2), MemoryBank),  # noqa: E501
    line(QuantizedMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 40, "bits": 8, "block_size": 64}, None, (7, 40), MemoryBank),  # noqa: E501
    line(QuantizedMemoryBank, lambda: {"num_memory_tokens": 7, "dim": 40, "bits": 4, "block_size": 128}, None, (7, 40), MemoryBank),  # noqa: E501
    line(OffloadedMemoryBank, lambda: {"stored": bank_of(8, 4), "tokens_per_chapter": 2, "num_resident_chapters": 4}, None, (8, 4), DistantBank),  # noqa: E501
    line(OffloadedMemoryBank, lambda: {"stored": FactorizedMemoryBank(num_memory_tokens=8, dim=4, rank=2, init=Normal(std=1.0)), "tokens_per_chapter": 2, "num_resident_chapters": 4}, None, (8, 4), DistantBank),  # noqa: E501
    line(OffloadedMemoryBank, lambda: {"stored": QuantizedMemoryBank(num_memory_tokens=8, dim=40, bits=8, block_size=64), "tokens_per_chapter": 8, "num_resident_chapters": 1}, None, (8, 40), DistantBank),  # noqa: E501
    line(MappedMemoryBank, lambda: {"stored": bank_of(8, 4), "tokens_per_chapter": 2, "num_resident_chapters": 4}, None, (8, 4), DistantBank),  # noqa: E501
    line(MappedMemoryBank, lambda: {"stored": ReducedDimMemoryBank(num_memory_tokens=8, rank=4, init=Normal(std=1.0)), "tokens_per_chapter": 4, "num_resident_chapters": 2}, None, (8, 4), DistantBank),  # noqa: E501
    line(MappedMemoryBank, lambda: {"stored": FactorizedMemoryBank(num_memory_tokens=8, dim=4, rank=2, init=Normal(std=1.0)), "tokens_per_chapter": 2, "num_resident_chapters": 4}, None, (8, 4), DistantBank),  # noqa: E501
    line(SinkMemoryBank, lambda: {"num_sinks": 2, "stored": bank_of(7, 4)}, None, (9, 4), MemoryBank),  # noqa: E501
    line(MemoryCrossAttention, lambda: read_arguments(8), STREAM, STREAM, Sublayer),
    line(ChapterRouter, lambda: router_arguments(SequenceRouting()), STREAM, (2, 1, 4), None),
    line(ChapterRouter, lambda: router_arguments(RollingRouting(window=2)), STREAM, (2, 2, 4), None),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(SequenceRouting(), JointSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(PromptRouting(), JointSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(RollingRouting(window=2), JointSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(TokenRouting(), JointSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(HybridRouting(window=2), JointSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(SequenceRouting(), IndependentSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(PromptRouting(), IndependentSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(RollingRouting(window=2), IndependentSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(TokenRouting(), IndependentSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(RoutedMemoryCrossAttention, lambda: routed_arguments(HybridRouting(window=2), IndependentSoftmax()), STREAM, STREAM, Sublayer),  # noqa: E501
    line(Residual, lambda: {"norm": RMSNorm(dim=8, eps=1e-5), "sublayer": mlp(8)}, STREAM, STREAM, Branch),  # noqa: E501
    line(Residual, lambda: {"norm": RMSNorm(dim=8, eps=1e-5), "sublayer": reader(bank_of(7, 8), 8)}, STREAM, STREAM, Branch),  # noqa: E501
    line(Insertion, lambda: {"layer": 1, "site": Site.AFTER_MLP, "sublayers": [recall(bank_of(7, 8), 8), think(8)]}, STREAM, STREAM, None),  # noqa: E501
    line(MemoryBlock, lambda: {"sublayers": [stacks.attend(), think(8)]}, STREAM, STREAM, Sublayer),
    line(MemoryBlock, lambda: {"sublayers": [stacks.attend(), recall(bank_of(7, 8), 8), think(8)]}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(MemoryBlock, lambda: {"sublayers": [stacks.attend(), think(8), recall(bank_of(7, 8), 8), think(8)]}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(LinearMemoryAttention, lambda: {"memory": tensor.heads(), "hidden_size": 8, "bias": True, "normalize_qkv": False}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(LinearMemoryAttention, lambda: {"memory": tensor.heads(), "hidden_size": 8, "bias": False, "normalize_qkv": True}, STREAM, STREAM, Sublayer),  # noqa: E501
    line(TensorMemoryBlock, lambda: {"attention": tensor.attention(8), "d_ff": 12, "dropout": 0.0}, STREAM, STREAM, Sublayer),  # noqa: E501
    words(TensorMemoryLM, lambda: {"vocab_size": VOCABULARY, "dropout": 0.0, "layers": [tensor.block(8), tensor.block(8)]}, LOGITS),  # noqa: E501
    words(MemoryTransformer, stacks.vanilla_arguments, LOGITS),
    words(MemoryTransformer, stacks.dense_arguments, LOGITS),
    words(MemoryTransformer, stacks.plain_arguments, LOGITS),
    words(MemoryTransformer, stacks.repeated_arguments, LOGITS),
    words(MemoryTransformer, stacks.forgetful_arguments, LOGITS),
    words(MemoryTransformer, lambda: stacks.routed_arguments(RollingRouting(window=2), JointSoftmax()), LOGITS),  # noqa: E501
    words(MemoryTransformer, lambda: stacks.routed_arguments(HybridRouting(window=2), IndependentSoftmax()), LOGITS),  # noqa: E501
]
# fmt: on
