"""The ways facts are taught to a base, each with as many trainable parameters as a LoRA.

- `memory-dense`: a bank that is read as attention reads usually.
- `memory-sharp`: cosines times a learned scale, and empty slots to read nothing.
- `memory-routed`: the same, of which each token reads the chapters that it chooses.
- `memory-sparse`: `memory-sharp`, of which only the slots that the facts read most are written.
- `lora`, `prefix`: by the library peft. `full`: every parameter of the base.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.evidence.rivals import Prefixed, numbers_per_virtual_token, with_lora
from memtx import (
    ChapterRouter,
    Insertion,
    JointSoftmax,
    Linear,
    LoadBalanceLoss,
    MemoryAdapter,
    MemoryCrossAttention,
    Normal,
    ReducedDimMemoryBank,
    Residual,
    RMSNorm,
    RoutedMemoryCrossAttention,
    RouterZLoss,
    ScaledHeads,
    SinkMemoryBank,
    Site,
    TokenRouting,
    UnitHeads,
    Zeros,
)
from memtx.train import ParameterGroup

# Memory tokens of a chapter; a sharp bank begins with as many empty ones.
CHAPTER = 64
HEAD_DIM = 32
TOP_K = 4
SHARPNESS = 25.0
# A sparse bank has so many times the tokens, and writes the share that a dense one has.
SPARSE = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Where and how widely a base reads memory, and the LoRA that sets what may be trained."""

    layers: list[int]
    rank: int
    lora_rank: int


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of a bank and of all else that is trained; 0.0 freezes."""

    bank: float
    rest: float


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model that can be taught, and what is trained of it."""

    model: Any
    # The base as it was, where the model cannot be switched back to it.
    before: Any | None
    groups: Callable[[Rates], list[ParameterGroup]]
    bank: nn.Module | None
    num_written: int | None
    trainable: int


def shape_of(config: Any) -> Shape:
    """Give the shape for a base: memories are read in the upper three fifths of its layers.

    Read in all, they did half as much harm again (benchmarks.evidence.reading).
    """
    small, depth = config.num_hidden_layers <= 6, config.num_hidden_layers
    return Shape(
        layers=list(range(2 * depth // 5, depth)),
        rank=max(64, config.hidden_size // 128 * 32),
        lora_rank=20 if small else 16,
    )


def count(model: nn.Module) -> int:
    """Count what is trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def linear(in_features: int, out_features: int) -> Linear:
    init = Normal(std=in_features**-0.5)
    return Linear(in_features=in_features, out_features=out_features, bias=False, init=init)


def projections(dim: int, rank: int, *, sharp: bool) -> tuple[nn.Module, nn.Module]:
    """Give what makes queries and keys."""
    query, key = linear(dim, rank), linear(rank, rank)
    if not sharp:
        return query, key
    heads = rank // HEAD_DIM
    unit = UnitHeads(projection=query, num_heads=heads, eps=1e-6)
    scale = SHARPNESS * HEAD_DIM**0.5
    return (
        ScaledHeads(projection=unit, num_heads=heads, scale=scale),
        UnitHeads(projection=key, num_heads=heads, eps=1e-6),
    )


def dense_read(bank: Any, *, dim: int, rank: int, sharp: bool) -> Residual:
    """Read a whole bank in `rank` dimensions."""
    q_proj, k_proj = projections(dim, rank, sharp=sharp)
    return Residual(
        norm=RMSNorm(dim=dim, eps=1e-5),
        sublayer=MemoryCrossAttention(
            bank=bank,
            q_proj=q_proj,
            k_proj=k_proj,
            v_proj=linear(rank, rank),
            o_proj=Linear(in_features=rank, out_features=dim, bias=False, init=Zeros()),
            num_heads=rank // HEAD_DIM,
            num_kv_heads=rank // HEAD_DIM,
            dropout=0.0,
        ),
    )


def routed_read(bank: Any, *, dim: int, rank: int) -> Residual:
    """Read the empty chapter and those that each token chooses, sharply."""
    chapters = bank.num_memory_tokens // CHAPTER
    q_proj, k_proj = projections(dim, rank, sharp=True)
    return Residual(
        norm=RMSNorm(dim=dim, eps=1e-5),
        sublayer=RoutedMemoryCrossAttention(
            bank=bank,
            router=ChapterRouter(
                num_chapters=chapters,
                num_shared_chapters=1,
                top_k=min(TOP_K, chapters - 1),
                routed_scale=2.5,
                scorer=linear(dim, chapters - 1),
                strategy=TokenRouting(),
                losses=[LoadBalanceLoss(weight=0.01), RouterZLoss(weight=0.001)],
            ),
            mixing=JointSoftmax(),
            q_proj=q_proj,
            k_proj=k_proj,
            v_proj=linear(rank, rank),
            o_proj=Linear(in_features=rank, out_features=dim, bias=False, init=Zeros()),
            num_heads=rank // HEAD_DIM,
            num_kv_heads=rank // HEAD_DIM,
            dropout=0.0,
        ),
    )


def chapters_for(base: Any, *, shape: Shape, kind: str, budget: int) -> int:
    """Give how many chapters can be stored within a budget; a router scores each in each layer."""
    dim, rank = base.config.hidden_size, shape.rank
    reader = 2 * dim * rank + 2 * rank * rank + dim + rank // HEAD_DIM
    each = CHAPTER * rank + (len(shape.layers) * dim if kind == "routed" else 0)
    left = budget - len(shape.layers) * reader
    if left < each:
        raise ValueError(f"chapters_for: a budget must hold a chapter, got budget={budget}.")
    return left // each


def memory(base: Any, *, shape: Shape, kind: str, budget: int) -> Learner:
    """Put a memory into a base."""
    dim = base.config.hidden_size
    written = chapters_for(base, shape=shape, kind=kind, budget=budget) * CHAPTER
    stored = written * (SPARSE if kind == "sparse" else 1)
    tokens = ReducedDimMemoryBank(num_memory_tokens=stored, rank=shape.rank, init=Normal(std=1.0))
    bank: Any = tokens if kind == "dense" else SinkMemoryBank(num_sinks=CHAPTER, stored=tokens)

    def read() -> Residual:
        if kind == "routed":
            return routed_read(bank, dim=dim, rank=shape.rank)
        return dense_read(bank, dim=dim, rank=shape.rank, sharp=kind != "dense")

    adapter = MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=Site.AFTER_ATTENTION, sublayers=[read()])
            for layer in shape.layers
        ],
    )

    def groups(rates: Rates) -> list[ParameterGroup]:
        parts = [
            ("bank", adapter.banks, [], rates.bank),
            ("reading", adapter.insertions, [adapter.banks], rates.rest),
        ]
        return [
            ParameterGroup(
                name=name, modules=[held], without=[*rest], learning_rate=rate, weight_decay=0.0
            )
            for name, held, rest, rate in parts
        ]

    return Learner(
        model=adapter,
        before=None,
        groups=groups,
        bank=bank,
        num_written=written if kind == "sparse" else None,
        trainable=count(adapter) - (stored - written) * shape.rank,
    )


def rival(model: Any, *, before: Any | None) -> Learner:
    """Teach all that needs a gradient in a model, at one rate."""

    def groups(rates: Rates) -> list[ParameterGroup]:
        return [
            ParameterGroup(
                name="all", modules=[model], without=[], learning_rate=rates.rest, weight_decay=0.0
            )
        ]

    return Learner(
        model=model,
        before=before,
        groups=groups,
        bank=None,
        num_written=None,
        trainable=count(model),
    )


def learner(base: Any, *, method: str, context: int) -> Learner:
    """Make a method on a copy of a base; `context` is how many tokens it must be able to read."""
    shape, own = shape_of(base.config), copy.deepcopy(base)
    if method == "full":
        return rival(own, before=base)
    lora = rival(with_lora(own, rank=shape.lora_rank), before=None)
    if method == "lora":
        return lora
    budget = lora.trainable
    own = copy.deepcopy(base)
    if method == "prefix":
        room = base.config.max_position_embeddings - context
        number = min(budget // numbers_per_virtual_token(base.config), room)
        return rival(Prefixed(base=own, num_virtual_tokens=number), before=base)
    return memory(own, shape=shape, kind=method.removeprefix("memory-"), budget=budget)
