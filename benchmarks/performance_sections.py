"""What docs/performance.md says beside its figures: sections, and the goals with where they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, what is said below it, and the files whose records follow."""

    title: str
    text: str
    results: list[str]
    # Cases with any of these in their names are left to another page.
    without: list[str]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that was aimed at, and which record tells it."""

    work: str
    results: str
    case: str
    variant: str
    value: Callable[[Record], float | None]
    bound: float
    unit: str
    most: bool


def field(name: str) -> Callable[[Record], float | None]:
    """Read a number of a record."""
    return lambda record: record.get(name)


def over(rival: str, kind: str) -> Callable[[Record], float | None]:
    """Read the ratio over a rival, in time or memory."""
    return lambda record: record["ratios"][rival][kind]


def at_most(
    work: str,
    at: tuple[str, str, str],
    value: Callable[[Record], float | None],
    bound: float,
    unit: str,
) -> Goal:
    """Give a goal that is reached from below; `at` is file, part of the case, variant."""
    results, case, variant = at
    return Goal(
        work=work,
        results=results,
        case=case,
        variant=variant,
        value=value,
        bound=bound,
        unit=unit,
        most=True,
    )


def at_least(
    work: str,
    at: tuple[str, str, str],
    value: Callable[[Record], float | None],
    bound: float,
    unit: str,
) -> Goal:
    """Give a goal that is reached from above."""
    results, case, variant = at
    return Goal(
        work=work,
        results=results,
        case=case,
        variant=variant,
        value=value,
        bound=bound,
        unit=unit,
        most=False,
    )


STEP, JOINT, TENSOR = "adapter_step", "65 of 4097 x 64 joint", "tensor_memory"
GOALS = [
    at_most(
        "adapter step, 10 reading layers, compiled: time over PEFT LoRA r16",
        (STEP, "1.5b", "memtx-compiled"),
        over("peft-lora-r16", "time"),
        0.80,
        "x",
    ),
    at_most(
        "the same: memory over PEFT LoRA r16",
        (STEP, "1.5b", "memtx-compiled"),
        over("peft-lora-r16", "memory"),
        0.50,
        "x",
    ),
    at_most(
        "adapter step, layers 23 to 27: time over PEFT LoRA r16",
        (STEP, "1.5b", "memtx-upper-layers"),
        over("peft-lora-r16", "time"),
        0.60,
        "x",
    ),
    at_most(
        "routed read by sequence, joint, with weights",
        ("routed_read", JOINT, "memtx"),
        field("milliseconds"),
        3.3,
        "ms",
    ),
    at_most(
        "routed read by sequence, independent",
        ("routed_read", "65 of 4097 x 64 independent", "memtx"),
        field("milliseconds"),
        8.0,
        "ms",
    ),
    at_most(
        "the same: memory",
        ("routed_read", "65 of 4097 x 64 independent", "memtx"),
        field("peak_gib"),
        2.5,
        "GiB",
    ),
    at_most(
        "routed read by token, top 4",
        ("routed_read", "4 of 4096 x 64 joint", "memtx"),
        field("milliseconds"),
        7.5,
        "ms",
    ),
    at_most(
        "routed read by token, top 8",
        ("routed_read", "8 of 4096 x 64 joint", "memtx"),
        field("milliseconds"),
        8.5,
        "ms",
    ),
    at_most(
        "CPU: routed read of 16 of 1,024 chapters over dense reading of all 65,536 tokens",
        ("routed_read_cpu", "joint", "dense reading of all"),
        field("ratio"),
        0.05,
        "x",
    ),
    at_least(
        "step of the 371M mixture of chapters, 16 rows, routed by sequence",
        ("mixture_of_chapters", "16", "memtx-sequence"),
        field("tokens_per_second"),
        225_000,
        "tokens/s",
    ),
    at_most(
        "the same: memory",
        ("mixture_of_chapters", "16", "memtx-sequence"),
        field("peak_gib"),
        16.0,
        "GiB",
    ),
    at_least(
        "step of its control of equal FLOPs",
        ("mixture_of_chapters", "16", "control"),
        field("tokens_per_second"),
        270_000,
        "tokens/s",
    ),
    at_most(
        "the same: memory",
        ("mixture_of_chapters", "16", "control"),
        field("peak_gib"),
        14.0,
        "GiB",
    ),
    at_most(
        "a generated token, batch 1, memory frozen, over the bare base",
        ("generation", "batch 1 ", "memtx-bf16-frozen"),
        field("ratio"),
        1.08,
        "x",
    ),
    at_most(
        "a generated token, batch 64, memory frozen, over the bare base",
        ("generation", "batch 64", "memtx-bf16-frozen"),
        field("ratio"),
        1.05,
        "x",
    ),
    at_most(
        "tensor memory, 8 x 2,048, compiled: time over the source's cumulative sum",
        (TENSOR, "8 x 2048", "memtx-compiled"),
        over("cumulative-sum", "time"),
        0.10,
        "x",
    ),
    at_most(
        "the same: memory",
        (TENSOR, "8 x 2048", "memtx-compiled"),
        over("cumulative-sum", "memory"),
        1 / 15,
        "x",
    ),
    at_most(
        "the same: time over fla's chunk_linear_attn",
        (TENSOR, "8 x 2048", "memtx-compiled"),
        over("fla-linear", "time"),
        1.0,
        "x",
    ),
    at_most(
        "tensor memory, 16,384 tokens, 16 heads of 128: time over fla's chunk_linear_attn",
        (TENSOR, "1 x 16384, 16", "memtx-compiled"),
        over("fla-linear", "time"),
        1.5,
        "x",
    ),
    at_most(
        "the same, delta rule: time over fla's chunk_delta_rule",
        (TENSOR, "1 x 16384, 16", "memtx-delta-compiled"),
        over("fla-delta", "time"),
        2.0,
        "x",
    ),
    at_most(
        "CPU: tensor memory of 2,048 tokens over the recurrence",
        ("tensor_memory_cpu", "2048", "memtx-float32"),
        over("recurrence", "time"),
        0.2,
        "x",
    ),
    at_most(
        "what the training loop takes beside the bare one, 30M, GPU",
        ("loop_overhead", "vanilla", "memtx"),
        field("overhead_percent"),
        2.0,
        "%",
    ),
    at_most(
        "what the training loop takes by the clock, 30M, CPU",
        ("loop_overhead_cpu", "vanilla", "memtx"),
        field("outside_percent"),
        5.0,
        "%",
    ),
    at_least(
        "packing: useful tokens over padding to the context of 256",
        ("data", "context 256", "memtx-packed"),
        lambda record: 1.0 / record["ratio"],
        2.0,
        "x",
    ),
]

SECTIONS = [
    Section(
        title="A training step of an adapter",
        text="""
`adapter_step`: the whole step (forward, loss, backward, clipping, AdamW) on a base of the shape of
Qwen2.5-1.5B with random weights, its memory of 2,048 tokens read in ten layers. `upper-layers`
reads in the last five alone: no gradient flows below them. `adapter_profile` says where the time
goes, and what the matrix products alone would take (`floor`).
""",
        results=["adapter_step", "adapter_profile"],
        without=[],
    ),
    Section(
        title="Families",
        text="""
`adapter_families`: the bare base, memory in ten layers, and PEFT LoRA of rank 16, per family; a
bare base has nothing to train, so its `train` is a forward with its loss. Decoding is not compiled
and bound by launches: what it shows is the cost of calls, with the noise of the host. `rows`: each
row of a batch reads a memory of its own; `ratio` is over `single`, where all rows read one.
""",
        results=["adapter_families_1_5b", "rows_1_5b"],
        without=[],
    ),
    Section(
        title="Routed reads",
        text="""
One read, forward and backward with the gradient of the router's weights, beside the same
mathematics by other library kernels.
""",
        results=["routed_read", "routed_read_cpu"],
        without=[],
    ),
    Section(
        title="Mixture of chapters",
        text="""
`mixture_of_chapters`: a training step of the 371M stack and of its control of equal FLOPs.
`bank_size`: the same stack with banks of other sizes at an equal number of reads.
""",
        results=["mixture_of_chapters", "bank_size"],
        without=[],
    ),
    Section(
        title="Generation",
        text="""
`generation`: a token of `generate` on the 1.5B shape with a static cache. `out_of_core`: a bank
that lies in the host's memory or in a file.
""",
        results=["generation", "out_of_core"],
        without=[],
    ),
    Section(
        title="Tensor memory",
        text="""
`tensor_memory`: forward and backward of one read, beside the source's cumulative sum and the
kernels of flash-linear-attention (`fla-delta` is another rule, only its speed is compared). On a
CPU beside the recurrence. [The page on tensor memory](tensor-memory.md) has the plot against the
length.
""",
        results=["tensor_memory", "tensor_memory_cpu"],
        without=[],
    ),
    Section(
        title="The training loop, data and many GPUs",
        text="""
`loop_overhead`: what the trainer costs beside forward, backward and optimizer; on a GPU the step
is bound by launches, and the committed run shared its host with other work. `data`: packing beside
padding. `scaling`: DDP and FSDP2 over several GPUs.
""",
        results=["loop_overhead", "loop_overhead_cpu", "data", "scaling"],
        without=[],
    ),
]
