"""A training step of the 371M mixture of chapters, and of its control without memory.

    PYTHONPATH=src:. python3 benchmarks/mixture_of_chapters.py --rows 16 \
        --variants control memtx-sequence --output benchmarks/results

A step is forward, chunked loss with the router's losses, backward, clipping and fused AdamW, on
rows of 1,024 fresh random tokens, in float32 under bfloat16 autocast. The model is compiled whole
by `torch.compile(model)`; `-eager` variants are not compiled. `memtx-sequence` has the routing of
the source's program, `memtx-rolling-N` chooses every N tokens. The control has 24 layers and takes
the FLOPs of the memory at 32 rows; `ratio` is memtx over it, in the same mode, if both were named.

`--many-laid` sets from how many elements of keys and values on a read makes them again in the
backward pass (`memtx.memory.routed_attention.MANY_LAID`): 0 always, a large number never. Each
variant runs on a model of its own, `--rounds` times, every other time in reverse order; numbers are
over the steps of all. Compiling takes about a minute. Peaks are of what torch allocated, weights
and optimizer included. `tflops` is three times the analytic forward over the time.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.adapter_step import Run, quotient, record_of
from benchmarks.clocks import clock_of, forget_peak, peak_gib
from benchmarks.records import Record, write_records
from factories.from_scratch import routed_a_tiny, vanilla_tiny
from factories.mixture_of_chapters import control, reading, with_memory, with_memory_by_sequence
from memtx import MemoryTransformer, RollingRouting, RoutedMemoryCrossAttention, SequenceRouting
from memtx.evaluate import forward_flops
from memtx.memory import routed_attention

NAME = "mixture_of_chapters"
LIBRARIES = ["torch", "triton"]
LEARNING_RATE = 3e-4
BETAS = (0.9, 0.95)
CLIP_NORM = 1.0
STACKS = ("control", "memtx-sequence", "memtx-rolling-128", "memtx-rolling-512")
EAGER = "-eager"
VARIANTS = [*STACKS, *(stack + EAGER for stack in STACKS)]
Compose = Callable[[], MemoryTransformer]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The stacks of a case, and how many tokens and steps they take."""

    case: str
    stacks: dict[str, Compose]
    batch: int
    length: int
    warm_up: int
    timed: int
    device: torch.device


def full_setting(*, batch: int, device: torch.device) -> Setting:
    """The stack of the paper on rows of 1,024 tokens."""
    return Setting(
        case=f"mixture-of-chapters 371M batch {batch} x 1024 bf16",
        stacks={
            "control": control,
            "memtx-sequence": with_memory_by_sequence,
            "memtx-rolling-128": with_memory,
            "memtx-rolling-512": lambda: reading(
                num_chapters=4_097, strategy=RollingRouting(window=512)
            ),
        },
        batch=batch,
        length=1_024,
        warm_up=5,
        timed=20,
        device=device,
    )


def tiny_setting(*, batch: int, device: torch.device) -> Setting:
    """The same case at a size for a CPU: it shows that the script runs, and measures nothing."""
    return Setting(
        case=f"tiny stacks batch {batch} x 32 bf16",
        stacks={
            "control": vanilla_tiny,
            "memtx-sequence": tiny_by_sequence,
            "memtx-rolling-128": routed_a_tiny,
            "memtx-rolling-512": routed_a_tiny,
        },
        batch=batch,
        length=32,
        warm_up=1,
        timed=2,
        device=device,
    )


def tiny_by_sequence() -> MemoryTransformer:
    """The tiny stack with the source's routing."""
    model = routed_a_tiny()
    for part in model.modules():
        if isinstance(part, RoutedMemoryCrossAttention):
            part.router.strategy = SequenceRouting()
    return model


def run_once(*, setting: Setting, name: str) -> Run:
    """Build a variant, run it, and give its memory back; a failure is a result."""
    try:
        return _run(setting=setting, name=name)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Run(milliseconds=[], peak_gib=None, trainable_parameters=None, error=text)


def _run(*, setting: Setting, name: str) -> Run:
    torch.manual_seed(0)
    with setting.device:
        model = setting.stacks[name.removesuffix(EAGER)]().train()
    forget_peak(setting.device)
    milliseconds = train(setting=setting, model=model, is_compiled=not name.endswith(EAGER))
    return Run(
        milliseconds=milliseconds[setting.warm_up - 1 :],
        peak_gib=peak_gib(setting.device),
        trainable_parameters=sum(p.numel() for p in model.parameters()),
        error=None,
    )


def train(*, setting: Setting, model: MemoryTransformer, is_compiled: bool) -> list[float]:
    """Take the steps and give the time of each but the first; nothing in the loop waits."""
    called = torch.compile(model) if is_compiled else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, eps=1e-8, weight_decay=0.1, fused=True
    )
    clock = clock_of(setting.device)
    size = (setting.batch, setting.length)
    for _ in range(setting.warm_up + setting.timed):
        ids = torch.randint(model.embedding.vocab_size, size, device=setting.device)
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            loss = called(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.log({})
    if not loss.isfinite():
        raise FloatingPointError(f"the loss must stay finite, got {loss.item()}")
    return clock.milliseconds()


def run_all(*, setting: Setting, names: list[str], rounds: int) -> dict[str, list[Run]]:
    """Run the variants, in reverse order every other time, so that a drift falls on all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            started = time.perf_counter()
            runs[name].append(run_once(setting=setting, name=name))
            seconds = time.perf_counter() - started
            said = runs[name][-1].error or f"ran, {seconds:.0f} s with its start"
            print(f"{name}: {said}", file=sys.stderr, flush=True)
            torch.compiler.reset()  # no variant meets what another one compiled
            gc.collect()
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
    return runs


def records_of(*, setting: Setting, names: list[str], rounds: int) -> list[Record]:
    """Run a case, and set memory over the control in the same mode."""
    records = []
    for name, runs in run_all(setting=setting, names=names, rounds=rounds).items():
        record = record_of(setting=setting, name=name, runs=runs)
        with torch.device("meta"):
            model = setting.stacks[name.removesuffix(EAGER)]()
        flops = forward_flops(model=model, batch=setting.batch, length=setting.length)
        record["forward_flops_per_token"] = flops.per_token
        record["many_laid"] = routed_attention.MANY_LAID
        if record["milliseconds"] is not None:
            record["tflops"] = 3 * flops.total / (record["milliseconds"] / 1000.0) / 1e12
        records.append(record)
    found = {record["variant"]: record for record in records}
    for name, ours in found.items():
        theirs = found.get("control" + (EAGER if name.endswith(EAGER) else ""))
        if theirs is not None and theirs is not ours:
            ours["ratio"] = quotient(ours["milliseconds"], theirs["milliseconds"])
            ours["ratio_of_flops"] = quotient(
                ours["forward_flops_per_token"], theirs["forward_flops_per_token"]
            )
    return records


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    lines = [
        f"{'case':<46}{'variant':<26}{'ms':>9}{'tokens/s':>11}{'GiB':>8}{'TFLOP/s':>9}{'ratio':>8}"
    ]
    for r in records:
        start = f"{r['case']:<46}{r['variant']:<26}"
        if "error" in r:
            lines.append(f"{start} {r['error'].splitlines()[0][:60]}")
            continue
        peak = "-" if r["peak_gib"] is None else f"{r['peak_gib']:.2f}"
        ratio = "-" if r.get("ratio") is None else f"{r['ratio']:.3f}"
        lines.append(
            f"{start}{r['milliseconds']:>9.2f}{r['tokens_per_second']:>11,.0f}{peak:>8}"
            f"{r['tflops']:>9.2f}{ratio:>8}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run, write and print; 1 if a variant failed."""
    parser = argparse.ArgumentParser(description="Time a training step of the 371M stack.")
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU; measures nothing")
    parser.add_argument("--rows", type=int, nargs="+", required=True, help="rows of a batch")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["control", "memtx-sequence"]
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each variant")
    parser.add_argument("--many-laid", type=int, default=routed_attention.MANY_LAID)
    options = parser.parse_args()
    routed_attention.MANY_LAID = options.many_laid
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # As a user trains on such a GPU: what stays float32, such as the router's scores, by TF32.
    torch.set_float32_matmul_precision("high")
    make = tiny_setting if options.tiny else full_setting
    records = [
        record
        for rows in options.rows
        for record in records_of(
            setting=make(batch=rows, device=device),
            names=options.variants,
            rounds=options.rounds,
        )
    ]
    path = write_records(
        folder=options.output, name=NAME, device=device, libraries=LIBRARIES, records=records
    )
    print(f"{table(records)}\n{path}")
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
