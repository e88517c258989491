"""Reads of chosen chapters, forward and backward, against plain ways to do the same.

    PYTHONPATH=src:. python3 benchmarks/routed_read.py --output benchmarks/results

On a GPU: reads by sequence (16 x 1,024 tokens, each sequence its 65 chapters of 64) and by token
(16,384 tokens, each its own few), bfloat16, 12 heads of 64, the gradient of the chapters' weights
included. On a CPU: 1,024 chapters of 64 tokens, 16 of them read by a sequence, against dense
reading of all, in float32. `--tiny` takes sizes that measure nothing, for either.

`--sweep` grows one size at a time instead, in joint reads by sequence: chapters read, length, and
memory tokens of the bank, beside dense reading of all and attention to gathered chapters. It keeps
its records in a file of their own, which is written after each point. On a CPU it runs in one
thread, and `milliseconds` is the fastest by the processor's own time, since others may use the
machine. `--axes` grows some of the sizes; records of the others that are in the file stay there.

A rival that leaves something out says so in its name; it is then faster than what it stands for.
`milliseconds` is the median from one backward pass to the next with the host running ahead, as in
training; `peak_gib` what a read needs beside its arguments, their gradients included.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.clocks import Clock, ProcessorClock, clock_of, forget_peak, peak_gib
from benchmarks.read_cases import AXES, Case, Point, cpu_cases, gpu_cases, sweep, tiny_cases
from benchmarks.read_rivals import Arguments, by_sequence, by_token, dense
from benchmarks.records import Record, kept_records, write_records
from memtx.ops.routed_read import independent_read, joint_read
from memtx.ops.segments import Segments

NAME = "routed_read"
LIBRARIES = ["torch", "triton"]
GATHERED, DENSE = "gather + SDPA without weights", "dense reading of all"
READS = {"joint": joint_read, "independent": independent_read}


def arguments_of(case: Case, *, device: torch.device) -> Arguments:
    """Draw what a read takes: of the memory, as in a model, only chapters that are read."""
    count = case.length if case.by_token else 1
    routed, shared = case.chosen - case.shared, torch.arange(case.shared, device=device)
    scores = torch.rand(case.batch, count, case.chapters - case.shared, device=device)
    choice = torch.cat(
        [
            shared.expand(case.batch, count, -1),
            scores.topk(routed, dim=-1).indices + case.shared,
        ],
        dim=-1,
    )
    distinct, choice = choice.unique(return_inverse=True)
    number = torch.arange(case.length, device=device).expand(case.batch, -1)
    segments = Segments(
        segment=number if case.by_token else torch.zeros_like(number),
        real=number >= 0,
        count=count,
        width=1 if case.by_token else case.length,
        regular=True,
    )

    def drawn(*, rows: int, columns: int) -> Tensor:
        shape = (rows, columns, case.heads, case.width)
        return torch.randn(shape, device=device, dtype=case.dtype).requires_grad_()

    weight = torch.randn(choice.shape, device=device).log_softmax(dim=-1)
    return Arguments(
        query=drawn(rows=case.batch, columns=case.length),
        key=drawn(rows=distinct.shape[0], columns=case.tokens),
        value=drawn(rows=distinct.shape[0], columns=case.tokens),
        choice=choice,
        log_weight=weight.requires_grad_(),
        segments=segments,
        chapters=case.chapters,
    )


def memtx_read(mixing: str) -> Callable[[Arguments], Tensor]:
    """Give memtx's read."""
    return lambda a: READS[mixing](a.query, a.key, a.value, a.choice, a.log_weight, a.segments, 0.0)


def variants(case: Case, mixing: str, *, on_gpu: bool) -> dict[str, Callable[[Arguments], Tensor]]:
    """Give memtx's read and its rivals by name."""
    rivals = by_token(mixing) if case.by_token else by_sequence(mixing)
    return {"memtx": memtx_read(mixing), **({} if on_gpu else dense()), **rivals}


def measured(
    read: Callable[[Arguments], Tensor],
    arguments: Arguments,
    *,
    clock: Clock,
    warm_up: int,
    timed: int,
) -> Record:
    """Time one read, forward and backward."""
    device = arguments.query.device
    leaves = arguments.leaves()
    upstream = torch.randn_like(arguments.query)

    def once() -> None:
        torch.autograd.grad(read(arguments), leaves, upstream, allow_unused=True)

    try:
        for _ in range(warm_up):
            once()
        forget_peak(device)
        before = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        clock.log({})
        for _ in range(timed):
            once()
            clock.log({})
        times = clock.milliseconds()
    except Exception as error:  # a failure is a result
        return {"milliseconds": None, "peak_gib": None, "error": f"{type(error).__name__}: {error}"}
    peak = peak_gib(device)
    return {
        "milliseconds": statistics.median(times),
        "milliseconds_min": min(times),
        "milliseconds_max": max(times),
        "peak_gib": None if peak is None else peak - before,
    }


def records_of(case: Case, mixing: str, *, device: torch.device, few: bool) -> list[Record]:
    """Run memtx and its rivals, memtx's first and once more last; keep the faster of the two."""
    torch.manual_seed(0)
    arguments = arguments_of(case, device=device)
    each = variants(case, mixing, on_gpu=device.type == "cuda")
    records: dict[str, Record] = {}
    for name in [*each, "memtx"]:
        counts = {"warm_up": 2 if few else 5, "timed": 3 if few else 20}
        record = measured(each[name], arguments, clock=clock_of(device), **counts)
        give_back(device)
        known = records.get(name, record)
        faster = min(known, record, key=lambda r: r["milliseconds"] or float("inf"))
        records[name] = faster
    ours = records["memtx"]["milliseconds"]
    for record in records.values():
        theirs = record["milliseconds"]
        record["ratio"] = ours / theirs if ours and theirs else None
    title = f"{case.name} {mixing} {str(case.dtype).removeprefix('torch.')}"
    return [{"case": title, "variant": name, **record} for name, record in records.items()]


def give_back(device: torch.device) -> None:
    """Give back what a read held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def records_at(point: Point, *, device: torch.device) -> list[Record]:
    """Run memtx and what it is drawn beside at one point of an axis."""
    torch.manual_seed(0)
    title = f"{point.axis}: {point.case.name}"
    records: list[Record] = []
    try:
        arguments = arguments_of(point.case, device=device)
        each = {
            "memtx": memtx_read("joint"),
            GATHERED: by_sequence("joint")[GATHERED],
            **(dense() if point.dense else {}),
        }
    except Exception as error:  # sizes that do not fit are a result
        each, text = {}, f"{type(error).__name__}: {error}"
        records.append({"variant": "memtx", "milliseconds": None, "peak_gib": None, "error": text})
    for name, read in each.items():
        on_gpu = device.type == "cuda"
        clock = clock_of(device) if on_gpu else ProcessorClock()
        timed = 3 if name == DENSE else 15
        record = measured(read, arguments, clock=clock, warm_up=2, timed=timed)
        if not on_gpu and "error" not in record:
            record["milliseconds"] = record["milliseconds_min"]
        records.append({"variant": name, **record})
        give_back(device)
    ours = records[0]["milliseconds"]
    for record in records:
        theirs = record["milliseconds"]
        record["ratio"] = ours / theirs if ours and theirs else None
    return [{"case": title, "axis": point.axis, "at": point.at, **record} for record in records]


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    lines = [f"{'case':<62}{'variant':<34}{'ms':>10}{'GiB':>8}{'memtx/it':>10}"]
    for r in records:
        case = r["case"] if r.get("at") is None else f"{r['case']}: {r['at']}"
        if "error" in r:
            lines.append(f"{case:<62}{r['variant']:<34} {r['error'].splitlines()[0][:60]}")
            continue
        peak = "-" if r["peak_gib"] is None else f"{r['peak_gib']:.2f}"
        lines.append(
            f"{case:<62}{r['variant']:<34}{r['milliseconds']:>10.3f}{peak:>8}"
            f"{r['ratio'] or 0.0:>10.3f}"
        )
    return "\n".join(lines)


def run_cases(options: argparse.Namespace, *, on_gpu: bool, device: torch.device) -> list[Record]:
    """Run the cases, each in both mixings."""
    cases = gpu_cases() if on_gpu else cpu_cases()
    records = []
    for case in tiny_cases() if options.tiny else cases:
        for mixing in READS:
            few = options.tiny or not on_gpu
            records += records_of(case, mixing, device=device, few=few)
            print(table(records[-1:]), file=sys.stderr, flush=True)
    return records


def main() -> int:
    """Run, write and print; 1 if a read of memtx failed."""
    parser = argparse.ArgumentParser(description="Time reads of chosen chapters and rivals.")
    parser.add_argument("--tiny", action="store_true", help="sizes that measure nothing")
    parser.add_argument("--cpu", action="store_true", help="the case of a CPU, also beside a GPU")
    parser.add_argument("--sweep", action="store_true", help="grow one size at a time")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="of a sweep")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    name = f"{NAME}_sweep" if options.sweep else NAME
    name = name if on_gpu or options.tiny else f"{name}_cpu"
    records: list[Record] = []

    def write() -> Path:
        path, keys = options.output / f"{name}.json", ("case", "at", "variant")
        kept = kept_records(path, records, keys=keys) if options.sweep else []
        whole = kept + records
        return write_records(
            folder=options.output, name=name, device=device, libraries=LIBRARIES, records=whole
        )

    if options.sweep:
        # Points differ in sizes that a compiler may take for fixed.
        torch._dynamo.config.recompile_limit = 64
        torch.set_num_threads(torch.get_num_threads() if on_gpu else 1)
        points = sweep("tiny" if options.tiny else "gpu" if on_gpu else "cpu")
        for point in [point for point in points if point.axis in options.axes]:
            records += records_at(point, device=device)
            print(f"{point.axis} {point.at}", file=sys.stderr, flush=True)
            write()
    else:
        records += run_cases(options, on_gpu=on_gpu, device=device)
    print(f"{table(records)}\n{write()}")
    return 1 if any("error" in r for r in records if r["variant"] == "memtx") else 0


if __name__ == "__main__":
    sys.exit(main())
