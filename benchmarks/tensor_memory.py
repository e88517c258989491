"""Tensor memory, forward and backward, against the source's formulation and fla's kernels.

    PYTHONPATH=src:. python3 benchmarks/tensor_memory.py --output benchmarks/results
    PYTHONPATH=src:. python3 benchmarks/tensor_memory.py --size cpu --output benchmarks/results
    PYTHONPATH=src:. python3 benchmarks/tensor_memory.py --draw docs/tensor-memory-cost.png

Inputs are query, key and value `[batch, length, heads, dim]`, random; a step is features, the read,
and the gradients of all three. Every variant is made and compiled once and runs twice, the second
time in reverse order. `--parts` measures some of the cases; records of the others that are in the
file already stay there. Peaks are of what torch allocated above what stood before the step, inputs
and gradients left out of neither. fla's kernels run where it is installed; `fla-delta` is another
rule (keys of length 1, no normaliser), which only its speed is compared with.

The second sets the chunks against the recurrence on a CPU, and the third draws the cost against the
length from the results of the first. The record `stream` reads a million tokens in pieces from a
state that is carried on, and `decode` times one token after texts of several lengths.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.clocks import clock_of, forget_peak, peak_gib
from benchmarks.records import Record, kept_records, write_records
from benchmarks.tensor_variants import (
    SWEEP,
    VARIANTS,
    Case,
    Read,
    cpu_cases,
    full_cases,
    growing_cases,
    memory_of,
    tiny_cases,
)
from memtx import TensorMemoryState

NAME = "tensor_memory"
LIBRARIES = ["torch", "triton", "flash-linear-attention", "fla-core"]
FILES = {"full": NAME, "cpu": f"{NAME}_cpu", "tiny": NAME}
PARTS = ("source", "long", "growing", "stream")
RESULTS = Path("benchmarks/results")
WARM_UP, TIMED = 3, 20
LONG = 200_000  # tokens
GIB = 2**30
# What each of memtx's rules is set over: the same mathematics first, then the fastest kernel.
RIVALS = {
    "delta": ["fla-delta", "recurrence-delta"],
    "": ["cumulative-sum", "fla-linear", "recurrence"],
}


def inputs_of(case: Case, *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Make query, key and value."""
    generator = torch.Generator(device).manual_seed(0)
    size = (case.batch, case.length, case.heads, case.dim)
    return [
        torch.randn(size, generator=generator, device=device).to(dtype).requires_grad_()
        for _ in range(3)
    ]


def allocated(device: torch.device) -> float:
    """Give what torch has allocated, in GiB."""
    return torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def run_once(
    case: Case, name: str, read: Read, device: torch.device
) -> tuple[list[float], float | None]:
    """Time the steps of a variant, and give the peak above what stood before."""
    before = allocated(device)
    inputs = inputs_of(case, dtype=(VARIANTS | SWEEP)[name].dtype, device=device)
    direction = torch.randn_like(inputs[0])
    clock = clock_of(device)
    # What takes seconds is not moved by the noise of microseconds.
    long = "recurrence" in name or case.batch * case.length > LONG
    warm_up, timed = (1, 2) if long else (WARM_UP, TIMED)
    for step in range(warm_up + timed + 1):
        if step == warm_up:
            forget_peak(device)
        torch.autograd.grad(read(*inputs), inputs, direction)
        if step >= warm_up:
            clock.log({})
    peak = peak_gib(device)
    return clock.milliseconds(), None if peak is None else peak - before


def run_case(case: Case, device: torch.device) -> list[Record]:
    """Run the variants of a case, and all again in reverse order."""
    times: dict[str, list[float]] = {name: [] for name in case.variants}
    peaks: dict[str, float | None] = {}
    errors: dict[str, str] = {}
    reads: dict[str, Read] = {}
    for name in [*case.variants, *reversed(case.variants)]:
        started = time.perf_counter()
        try:
            if name not in reads:
                reads[name] = (VARIANTS | SWEEP)[name].make(case)
            milliseconds, peaks[name] = run_once(case, name, reads[name], device)
            times[name] += milliseconds
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"[:300]
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        seconds = time.perf_counter() - started
        median = statistics.median(times[name]) if times[name] else math.nan
        said = errors.get(name, f"{median:.3f} ms, {seconds:.0f} s with its start")
        print(f"{case.name}: {name}: {said}", file=sys.stderr, flush=True)
    torch.compiler.reset()  # no case meets what another one compiled
    return [record_of(case, name, times[name], peaks.get(name), errors.get(name)) for name in times]


def record_of(
    case: Case, name: str, times: list[float], peak: float | None, error: str | None
) -> Record:
    """Put the runs of a variant into its record."""
    record: Record = {"case": case.name, "variant": name, "milliseconds": None, "peak_gib": None}
    if error is not None:
        return {**record, "error": error}
    median = statistics.median(times)
    return {
        **record,
        "milliseconds": median,
        "milliseconds_min": min(times),
        "milliseconds_max": max(times),
        "peak_gib": peak,
        "tokens_per_second": case.batch * case.length / (median / 1000.0),
        "length": case.length,
    }


def add_ratios(records: list[Record]) -> None:
    """Set memtx over its rivals of the same case, in time and memory, in memtx's records."""
    by_name = {record["variant"]: record for record in records}
    for name, record in by_name.items():
        if not name.startswith("memtx") or record["milliseconds"] is None:
            continue
        rivals = RIVALS["delta" if "delta" in name else ""]
        for rival in (by_name[each] for each in rivals if each in by_name):
            if rival["milliseconds"] is None:
                continue
            ratio = record["milliseconds"] / rival["milliseconds"]
            record.setdefault("ratio", ratio)
            found = {"time": ratio, "memory": None}
            if record["peak_gib"] and rival["peak_gib"]:
                found["memory"] = record["peak_gib"] / rival["peak_gib"]
            record.setdefault("ratios", {})[rival["variant"]] = found


@torch.no_grad()
def stream(*, tokens: int, piece: int, device: torch.device) -> list[Record]:
    """Read a text of many tokens in pieces, and say what became of state and memory."""
    records: list[Record] = []
    for rule in ("plain", "delta", "decaying"):
        memory = memory_of(heads=8, dim=64, rule=rule)
        state, finite, peaks = None, True, []
        clock = clock_of(device)
        clock.log({})
        for _ in range(tokens // piece):
            forget_peak(device)
            made = torch.randn(3, 1, piece, 8, 64, device=device).to(torch.bfloat16)
            read, state = memory.read_and_write(*made, state, None, None, True)
            finite = finite and bool(read.isfinite().all())
            peaks.append(peak_gib(device))
        clock.log({})
        seen = [peak for peak in peaks[1:] if peak is not None]
        records.append(
            {
                "case": f"stream {tokens} tokens",
                "variant": f"memtx-{rule}",
                "milliseconds": sum(clock.milliseconds()),
                "peak_gib": max(seen) if seen else None,
                # The first piece starts without a state, and so with less.
                "peak_gib_first": seen[0] if seen else None,
                "all_finite": finite,
                "largest_memory": state.memory.abs().max().item() if state else None,
                "largest_norm": state.norm.max().item() if state else None,
            }
        )
    return records


@torch.no_grad()
def decode(*, lengths: list[int], device: torch.device) -> list[Record]:
    """Time one token after texts of several lengths; what came before is a state of one size."""
    records: list[Record] = []
    memory = memory_of(heads=8, dim=64, rule="delta")
    for length in lengths:
        made = torch.randn(3, 8, length, 8, 64, device=device).to(torch.bfloat16)
        _, state = memory.read_and_write(*made, None, None, None, True)
        token = made[:, :, :1].contiguous()
        forget_peak(device)  # waits: what came before is not the token's
        clock = clock_of(device)
        for step in range(WARM_UP + TIMED + 1):
            _, state = memory.read_and_write(*token, state, None, None, True)
            if step >= WARM_UP:
                clock.log({})
        records.append(
            {
                "case": f"decode after {length}",
                "variant": "memtx-delta",
                "milliseconds": statistics.median(clock.milliseconds()),
                "peak_gib": None,
                "state_bytes": state_bytes(state),
            }
        )
    return records


def state_bytes(state: TensorMemoryState | None) -> int:
    """Count the bytes of a state."""
    return sum(x.numel() * x.element_size() for x in state.tensors().values()) if state else 0


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    lines = [f"{'case':<36}{'variant':<22}{'ms':>10}{'GiB':>8}{'ratio':>8}"]
    for r in records:
        if "error" in r:
            lines.append(f"{r['case']:<36}{r['variant']:<22} {r['error'].splitlines()[0][:60]}")
            continue
        peak = "-" if r["peak_gib"] is None else f"{r['peak_gib']:.3f}"
        ratio = f"{r['ratio']:.3f}" if "ratio" in r else "-"
        lines.append(
            f"{r['case']:<36}{r['variant']:<22}{r['milliseconds']:>10.3f}{peak:>8}{ratio:>8}"
        )
    return "\n".join(lines)


def draw(*, results: Path, path: Path) -> None:
    """Draw the time of a step against the length, from a file of results."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = json.loads(results.read_text(encoding="utf-8"))["records"]
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record["case"] in {case.name for case in growing_cases()} and record["milliseconds"]:
            found = points.setdefault(record["variant"], [])
            found.append((record["length"], record["milliseconds"]))
    figure = Figure(figsize=(7.0, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, found in points.items():
        axes.loglog(*zip(*sorted(found), strict=True), marker="o", markersize=4, label=name)
    lengths = sorted(length for length, _ in points["memtx"])
    last = max(points["memtx"])[1]
    line = [last * length / lengths[-1] for length in lengths]
    axes.loglog(lengths, line, color="grey", linestyle=":", label="proportional to the length")
    axes.set_xlabel("tokens")
    axes.set_ylabel("forward and backward, ms")
    axes.set_title("Cost against length: batch 1, 8 heads of 64, bfloat16")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def cases_of(size: str, *, parts: list[str]) -> list[Case]:
    """Give the cases of a size; of the full one, the parts that were asked for."""
    if size != "full":
        return cpu_cases() if size == "cpu" else tiny_cases()
    source, long, *growing = full_cases()
    named = {"source": [source], "long": [long], "growing": growing, "stream": []}
    return [case for part in parts for case in named[part]]


def measure(size: str, *, parts: list[str], folder: Path, leave_out: list[str]) -> list[Record]:
    """Run the cases of a size, and write anew after each, so that a run that is stopped keeps."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    records: list[Record] = []
    path = folder / f"{FILES[size]}.json"

    def keep(found: list[Record]) -> None:
        records.extend(found)
        write_records(
            folder=folder,
            name=path.stem,
            device=device,
            libraries=LIBRARIES,
            records=kept_records(path, records, keys=("case", "variant")) + records,
        )
        print(path, file=sys.stderr, flush=True)

    for case in cases_of(size, parts=parts):
        left = [v for v in case.variants if not any(part in v for part in leave_out)]
        found = run_case(replace(case, variants=left), device)
        add_ratios(found)
        keep(found)
    if size != "cpu" and "stream" in parts:
        tokens, piece = (512, 128) if size == "tiny" else (1_000_000, 20_000)
        keep(stream(tokens=tokens, piece=piece, device=device))
        lengths = [64] if size == "tiny" else [1_024, 16_384, 131_072]
        keep(decode(lengths=lengths, device=device))
    return records


def main() -> int:
    """Run, write and print, or draw; 1 if a variant of memtx failed."""
    parser = argparse.ArgumentParser(description="Time tensor memory and its rivals.")
    parser.add_argument(
        "--size", choices=FILES, default="full", help="tiny shows that it runs, measures nothing"
    )
    parser.add_argument(
        "--leave-out", nargs="*", default=[], help="parts of names of variants not to run"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="cases of the full size"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--draw", type=Path, help="draw the plot of the results into this PNG")
    options = parser.parse_args()
    if options.draw is not None:
        draw(results=options.output / f"{NAME}.json", path=options.draw)
        return 0
    records = measure(
        options.size,
        parts=options.parts,
        folder=options.output,
        leave_out=options.leave_out,
    )
    print(table(records))
    failed = [r for r in records if "error" in r and r["variant"].startswith("memtx")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
