"""What docs/performance.md says beside its figures: its sections."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, what is said below it, the files whose records follow, and its plots."""

    title: str
    text: str
    results: list[str]
    plots: list[str]
    # Cases with any of these in their names are left to another page.
    without: list[str]


SECTIONS = [
    Section(
        title="Where the time goes",
        text="""
`step_profile`: the three main steps, kernel by kernel, and what they cannot do without (`floor`):
of a training step its arithmetic at the rate of a large matrix product and the bytes of its
optimizer, of a generated token the bytes that it reads at the rate of a large copy. `idle` is what
the kernels leave of a step that nobody watches: the device waits for the host.
""",
        results=["step_profile"],
        plots=["profile"],
        without=[],
    ),
    Section(
        title="A training step of an adapter",
        text="""
`adapter_step`: the whole step (forward, loss, backward, clipping, AdamW) on a base of the shape of
Qwen2.5-1.5B with random weights, its memory of 2,048 tokens read in ten layers. `upper-layers`
reads in the last five alone: no gradient flows below them. `adapter_profile` says where the time
goes, and what the matrix products alone would take (`floor`).
""",
        results=["adapter_step", "adapter_profile"],
        plots=["adapter"],
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
        plots=[],
        without=[],
    ),
    Section(
        title="Routed reads",
        text="""
One read, forward and backward with the gradient of the router's weights, beside the same
mathematics by other library kernels; `matrix products` is the naive formulation, which holds all
scores. In `routed_read_sweep` one size grows at a time, in joint reads by sequence; dense reading
of all knows no chapters. The figures of a point that failed, for want of memory, are left out.
""",
        results=["routed_read", "routed_read_cpu", "routed_read_sweep", "routed_read_sweep_cpu"],
        plots=["reads", "sweep", "sweep-cpu"],
        without=[],
    ),
    Section(
        title="Mixture of chapters",
        text="""
`mixture_of_chapters`: a training step of the 371M stack and of its control of equal FLOPs.
`bank_size`: the same stack with banks of other sizes at an equal number of reads.
""",
        results=["mixture_of_chapters", "bank_size"],
        plots=["bank-size"],
        without=[],
    ),
    Section(
        title="Generation",
        text="""
`generation`: a token of `generate` on the 1.5B shape with a static cache. `out_of_core`: a bank
that lies in the host's memory or in a file. `page_read`: how compiled decoding reads the chapters
of a frozen routed memory. Torch has one kernel that reads pages where they lie and comes with it:
FlexAttention, compiled (`varlen_attn` takes page tables with FlashAttention 3 alone, which is
installed apart). memtx goes that way on a CPU, in float32; on a GPU it copies the chapters that are
read, once a token, in the kernel that lays them out, until pages are measured there to be faster.
""",
        results=["generation", "page_read", "page_read_cpu", "out_of_core"],
        plots=["generation"],
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
        plots=[],
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
        plots=[],
        without=[],
    ),
]
