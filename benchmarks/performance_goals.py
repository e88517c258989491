"""What was aimed at, which record tells how far it was reached, and why where it was not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Value = Callable[[Record], float | None]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that was aimed at, and which record tells it: the first that has a value."""

    work: str
    results: str
    case: str
    variant: str
    value: Value
    bound: float
    unit: str
    most: bool


def field(name: str) -> Value:
    """Read a number of a record."""
    return lambda record: record.get(name)


def over(rival: str, kind: str) -> Value:
    """Read the ratio over a rival, in time or memory."""
    return lambda record: record.get("ratios", {}).get(rival, {}).get(kind)


def grown(name: str) -> Value:
    """Read a number of the record of the largest bank."""
    return lambda record: record.get(name) if record["num_memory_tokens"] == 2**20 else None


def share(above: str, below: str) -> Value:
    """Divide two numbers of a record."""

    def value(record: Record) -> float | None:
        pair = record.get(above), record.get(below)
        return None if None in pair else pair[0] / pair[1]

    return value


At = tuple[str, str, str]


def _goal(work: str, at: At, value: Value, bound: float, unit: str, most: bool) -> Goal:
    results, case, variant = at
    return Goal(
        work=work,
        results=results,
        case=case,
        variant=variant,
        value=value,
        bound=bound,
        unit=unit,
        most=most,
    )


def at_most(work: str, at: At, value: Value, bound: float, unit: str) -> Goal:
    """Give a goal that is reached from below; `at` is file, part of the case, variant."""
    return _goal(work, at, value, bound, unit, most=True)


def at_least(work: str, at: At, value: Value, bound: float, unit: str) -> Goal:
    """Give a goal that is reached from above."""
    return _goal(work, at, value, bound, unit, most=False)


STEP, READ, CHAPTERS, BANK = "adapter_step", "routed_read", "mixture_of_chapters", "bank_size"
TOKEN, FAR, TENSOR = "generation", "out_of_core", "tensor_memory"
LORA, SEQUENCE = "peft-lora-r16", "65 of 4097 x 64"
# At a width of one token, the cases of `bank_size`.
STEPS = "371M step batch 16 sequence compiled"
ONE, MANY = (f"371M token after 128 batch {n} rolling-128" for n in (1, 64))
GOALS = [
    at_most(
        "adapter step, 10 reading layers, compiled: time over PEFT LoRA r16",
        (STEP, "1.5b", "memtx-compiled"), over(LORA, "time"), 0.80, "x",
    ),
    at_most(
        "adapter step, 10 reading layers, compiled: memory over PEFT LoRA r16",
        (STEP, "1.5b", "memtx-compiled"), over(LORA, "memory"), 0.50, "x",
    ),
    at_most(
        "adapter step, layers 23 to 27: time over PEFT LoRA r16",
        (STEP, "1.5b", "memtx-upper-layers"), over(LORA, "time"), 0.60, "x",
    ),
    at_most(
        "adapter step, routed bank of 262,144 tokens over a bank of 2,048",
        (STEP, "1.5b", "memtx-routed"), over("memtx", "time"), 1.10, "x",
    ),
    at_most(
        "adapter step, routed bank of 262,144 tokens over a bank of 2,048, both compiled",
        (STEP, "1.5b", "memtx-routed-compiled"), over("memtx-compiled", "time"), 1.10, "x",
    ),
    at_most(
        "routed read by sequence, joint, with weights",
        (READ, f"{SEQUENCE} joint", "memtx"), field("milliseconds"), 3.3, "ms",
    ),
    at_most(
        "routed read by sequence, independent",
        (READ, f"{SEQUENCE} independent", "memtx"), field("milliseconds"), 8.0, "ms",
    ),
    at_most(
        "routed read by sequence, independent: memory",
        (READ, f"{SEQUENCE} independent", "memtx"), field("peak_gib"), 2.5, "GiB",
    ),
    at_most(
        "routed read by token, top 4",
        (READ, "4 of 4096 x 64 joint", "memtx"), field("milliseconds"), 7.5, "ms",
    ),
    at_most(
        "routed read by token, top 8",
        (READ, "8 of 4096 x 64 joint", "memtx"), field("milliseconds"), 8.5, "ms",
    ),
    at_most(
        "CPU: routed read of 16 of 1,024 chapters over dense reading of all 65,536 tokens",
        ("routed_read_cpu", "joint", "dense reading of all"), field("ratio"), 0.05, "x",
    ),
    at_least(
        "step of the 371M mixture of chapters, 16 rows, routed by sequence",
        (CHAPTERS, "batch 16 ", "memtx-sequence"), field("tokens_per_second"), 225_000, "tokens/s",
    ),
    at_most(
        "step of the 371M mixture of chapters: memory",
        (CHAPTERS, "batch 16 ", "memtx-sequence"), field("peak_gib"), 16.0, "GiB",
    ),
    at_least(
        "step of its control of equal FLOPs",
        (CHAPTERS, "batch 16 ", "control"), field("tokens_per_second"), 270_000, "tokens/s",
    ),
    at_most(
        "step of its control: memory",
        (CHAPTERS, "batch 16 ", "control"), field("peak_gib"), 14.0, "GiB",
    ),
    at_most(
        "371M step, bank of 1,048,576 tokens over one of 16,384, rows of the bank by Adagrad",
        (BANK, STEPS, "sparse-adagrad"), grown("ratio"), 1.10, "x",
    ),
    at_most(
        "371M step, bank of 1,048,576 tokens over one of 16,384, dense AdamW on the bank",
        (BANK, STEPS, "dense-adamw"), grown("ratio"), 1.10, "x",
    ),
    at_most(
        "371M token, batch 1, bank of 1,048,576 tokens over one of 16,384",
        (BANK, ONE, "frozen"), grown("ratio"), 1.05, "x",
    ),
    at_most(
        "371M token, batch 64, bank of 1,048,576 tokens over one of 16,384",
        (BANK, MANY, "frozen"), grown("ratio"), 1.05, "x",
    ),
    at_most(
        "371M token, batch 1, bank of 1,048,576 tokens over the control",
        (BANK, ONE, "frozen"), grown("ratio_to_control"), 1.0, "x",
    ),
    at_most(
        "371M token, batch 64, bank of 1,048,576 tokens over the control",
        (BANK, MANY, "frozen"), grown("ratio_to_control"), 1.0, "x",
    ),
    at_most(
        "a generated token, 1.5B, batch 1, memory frozen, over the bare base",
        (TOKEN, "batch 1 ", "memtx-bf16-frozen"), field("ratio"), 1.08, "x",
    ),
    at_most(
        "a generated token, 1.5B, batch 64, memory frozen, over the bare base",
        (TOKEN, "batch 64 ", "memtx-bf16-frozen"), field("ratio"), 1.05, "x",
    ),
    at_most(
        "bank of 1,048,576 tokens in the host's memory: a token over the bank on the GPU",
        (FAR, "generate, 1048576 x", "memtx, host"), field("ratio"), 1.10, "x",
    ),
    at_most(
        "bank of 16,777,216 tokens, 8 bits, in a file: all memory on the GPU over the bank's size",
        (FAR, "16777216 tokens, reduced to 256, 8 bits", "memtx, cold file"),
        share("peak_gib", "bank_gib"), 0.25, "x",
    ),
    at_most(
        "bank of 16,777,216 tokens, factorized, in a file: all memory on the GPU over its size",
        (FAR, "16777216 tokens, factorized", "memtx, cold file"),
        share("peak_gib", "bank_gib"), 0.25, "x",
    ),
    at_most(
        "tensor memory, 8 x 2,048, compiled: time over the source's cumulative sum",
        (TENSOR, "8 x 2048", "memtx-compiled"), over("cumulative-sum", "time"), 0.10, "x",
    ),
    at_most(
        "tensor memory, 8 x 2,048, compiled: memory over the source's cumulative sum",
        (TENSOR, "8 x 2048", "memtx-compiled"), over("cumulative-sum", "memory"), 1 / 15, "x",
    ),
    at_most(
        "tensor memory, 8 x 2,048, compiled: time over fla's chunk_linear_attn",
        (TENSOR, "8 x 2048", "memtx-compiled"), over("fla-linear", "time"), 1.0, "x",
    ),
    at_most(
        "tensor memory, 16,384 tokens, 16 heads of 128: time over fla's chunk_linear_attn",
        (TENSOR, "1 x 16384, 16", "memtx-compiled"), over("fla-linear", "time"), 1.5, "x",
    ),
    at_most(
        "tensor memory, 16,384 tokens, delta rule: time over fla's chunk_delta_rule",
        (TENSOR, "1 x 16384, 16", "memtx-delta-compiled"), over("fla-delta", "time"), 2.0, "x",
    ),
    at_most(
        "CPU: tensor memory of 2,048 tokens over the recurrence",
        ("tensor_memory_cpu", "2048", "memtx-float32"), over("recurrence", "time"), 0.2, "x",
    ),
    at_most(
        "what the training loop takes beside the bare one, 30M, GPU",
        ("loop_overhead", "vanilla", "memtx"), field("overhead_percent"), 2.0, "%",
    ),
    at_most(
        "what the training loop takes by the clock, 30M, CPU",
        ("loop_overhead_cpu", "vanilla", "memtx"), field("outside_percent"), 5.0, "%",
    ),
    at_least(
        "packing: useful tokens over padding to the context of 256",
        ("data", "context 256", "memtx-packed"), lambda record: 1.0 / record["ratio"], 2.0, "x",
    ),
]  # fmt: skip
# Why a goal was not reached, by its work: said below the table as long as that is so. Figures
# stand in the results; where the time goes, and the floor, is told by `step_profile`.
REASONS = {
    "371M step, bank of 1,048,576 tokens over one of 16,384, dense AdamW on the bank": """
AdamW is not exact row by row: moments of a row that nobody read decay, and move it, in every step.
So each step reads and writes weight, gradient and two moments of the whole bank, whatever was read.
Rows by Adagrad or SGD are exact and move only what was read; `sparse-adam` says what it leaves out.
""",
    "what the training loop takes beside the bare one, 30M, GPU": """
The step is bound by launches, and the committed run shared its host with other work.
""",
}
