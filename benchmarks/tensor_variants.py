"""What `tensor_memory` times: memtx's chunked forms, the source's formulation, fla's kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memtx import DecayingTensorMemory, MultiHeadMemory, TensorMemory, TensorMemoryConfig
from memtx.ops.tensor_memory import features, tensor_memory, tensor_memory_reference

EPS = 1e-6
Read = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one case, and the variants that run in it."""

    name: str
    batch: int
    length: int
    heads: int
    dim: int
    variants: list[str]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way from query, key and value to what is read, and the dtype of its inputs."""

    make: Callable[[Case], Read]
    dtype: torch.dtype


def memory_of(*, heads: int, dim: int, rule: str) -> MultiHeadMemory:
    """Make the heads of one rule: plain, delta or decaying."""
    config = TensorMemoryConfig(
        dim=dim,
        eps=EPS,
        use_delta_rule=rule == "delta",
        max_delta=10.0,
        max_memory=100.0,
        max_norm=1000.0,
    )
    if rule == "decaying":
        return MultiHeadMemory([DecayingTensorMemory(config, decay=0.99) for _ in range(heads)])
    return MultiHeadMemory([TensorMemory(config) for _ in range(heads)])


def chunked(rule: str, *, compiled: bool) -> Callable[[Case], Read]:
    """Give memtx's form of a rule, as training calls it: without a state."""

    def make(case: Case) -> Read:
        memory = memory_of(heads=case.heads, dim=case.dim, rule=rule)

        def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return memory.read_and_write(query, key, value, None, None, None, False)[0]

        return torch.compile(read, fullgraph=True) if compiled else read

    return make


def in_chunks_of(rule: str, *, chunk: int) -> Callable[[Case], Read]:
    """Give memtx's form of a rule with chunks of a size that it would not choose itself."""

    def make(case: Case) -> Read:
        memory = memory_of(heads=case.heads, dim=case.dim, rule=rule)

        def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            rules = memory.rules(query.device)
            nothing = (None, None, None, None)
            return tensor_memory(query, key, value, rules, *nothing, chunk, False)[0]

        return read

    return make


def recurrence(rule: str) -> Callable[[Case], Read]:
    """Give the definition of a rule: token by token, in Python."""

    def make(case: Case) -> Read:
        memory = memory_of(heads=case.heads, dim=case.dim, rule=rule)

        def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            rules, nothing = memory.rules(query.device), (None, None, None, None)
            return tensor_memory_reference(query, key, value, rules, *nothing)[0]

        return read

    return make


def cumulative_sum(case: Case) -> Read:  # noqa: ARG001
    """Give the source's formulation: the state of every token at once, by a cumulative sum."""

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (features(query), features(key), value))
        states = torch.einsum("bhsd,bhse->bhsde", k, v).cumsum(dim=2)
        above = torch.einsum("bhsd,bhsde->bhse", q, states)
        below = torch.einsum("bhsd,bhsd->bhs", q, k.cumsum(dim=2))
        return (above / (below[..., None] + EPS)).transpose(1, 2)

    return read


def fla_linear(case: Case) -> Read:  # noqa: ARG001
    """Give fla's kernel of normalised linear attention; it reads its own token too."""
    from fla.ops.linear_attn import chunk_linear_attn

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k = features(query), features(key)
        return chunk_linear_attn(q, k, value, normalize=True)[0]

    return read


def fla_delta(case: Case) -> Read:
    """Give fla's kernel of the delta rule (Yang et al.): keys of length 1, no normaliser."""
    from fla.ops.delta_rule import chunk_delta_rule

    beta = torch.full((case.batch, case.length, case.heads), 0.5, device="cuda")

    def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k = (torch.nn.functional.normalize(x, dim=-1).to(value.dtype) for x in (query, key))
        return chunk_delta_rule(q, k, value, beta.to(value.dtype))[0]

    return read


VARIANTS = {
    "memtx": Variant(make=chunked("plain", compiled=False), dtype=torch.bfloat16),
    "memtx-float32": Variant(make=chunked("plain", compiled=False), dtype=torch.float32),
    "memtx-decaying": Variant(make=chunked("decaying", compiled=False), dtype=torch.bfloat16),
    "memtx-delta": Variant(make=chunked("delta", compiled=False), dtype=torch.bfloat16),
    "memtx-compiled": Variant(make=chunked("plain", compiled=True), dtype=torch.bfloat16),
    "memtx-delta-compiled": Variant(make=chunked("delta", compiled=True), dtype=torch.bfloat16),
    "recurrence": Variant(make=recurrence("plain"), dtype=torch.float32),
    "recurrence-delta": Variant(make=recurrence("delta"), dtype=torch.float32),
    "memtx-delta-float32": Variant(make=chunked("delta", compiled=False), dtype=torch.float32),
    "cumulative-sum": Variant(make=cumulative_sum, dtype=torch.float32),
    "cumulative-sum-bf16": Variant(make=cumulative_sum, dtype=torch.bfloat16),
    "fla-linear": Variant(make=fla_linear, dtype=torch.bfloat16),
    "fla-delta": Variant(make=fla_delta, dtype=torch.bfloat16),
}
SWEEP = {
    f"memtx-{rule}-chunk-{chunk}": Variant(
        make=in_chunks_of(rule, chunk=chunk), dtype=torch.bfloat16
    )
    for rule in ("plain", "delta")
    for chunk in (32, 64, 128, 256)
}
RULES = ["memtx", "memtx-float32", "memtx-decaying", "memtx-delta"]
COMPILED = ["memtx-compiled", "memtx-delta-compiled"]
CUMULATIVE = ["cumulative-sum", "cumulative-sum-bf16"]
FLA = ["fla-linear", "fla-delta"]
LENGTHS = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)


def full_cases() -> list[Case]:
    """The cases of the report, the first with a sweep of chunk sizes."""
    return [
        Case(
            name="batch 8 x 2048, 8 heads of 64",
            batch=8,
            length=2_048,
            heads=8,
            dim=64,
            variants=[*RULES, *COMPILED, *SWEEP, *CUMULATIVE, *FLA],
        ),
        Case(
            name="batch 1 x 16384, 16 heads of 128",
            batch=1,
            length=16_384,
            heads=16,
            dim=128,
            variants=[*RULES, *COMPILED, *FLA],
        ),
        *growing_cases(),
    ]


def growing_cases() -> list[Case]:
    """One row of growing length."""
    return [
        Case(
            name=f"batch 1 x {length}, 8 heads of 64",
            batch=1,
            length=length,
            heads=8,
            dim=64,
            variants=["memtx", "memtx-delta", *FLA],
        )
        for length in LENGTHS
    ]


def cpu_cases() -> list[Case]:
    """The definition beside the chunks, where both run in Python."""
    return [
        Case(
            name="batch 1 x 2048, 8 heads of 64",
            batch=1,
            length=2_048,
            heads=8,
            dim=64,
            variants=["memtx-float32", "recurrence", "memtx-delta-float32", "recurrence-delta"],
        )
    ]


def tiny_cases() -> list[Case]:
    """A case for a CPU: it shows that the script runs, and measures nothing."""
    memtx = ["memtx", "memtx-decaying", "memtx-delta", "memtx-delta-chunk-32"]
    variants = [*memtx, "cumulative-sum"]
    return [
        Case(
            name="batch 1 x 48, 2 heads of 8", batch=1, length=48, heads=2, dim=8, variants=variants
        )
    ]
