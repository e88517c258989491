"""A decoded token's read of chosen chapters: pages where they lie, beside copies of them.

    PYTHONPATH=src:. python3 benchmarks/page_read.py --output benchmarks/results

One token to a row reads 65 chapters of 64 tokens by a joint softmax with weights, in one compiled
graph without gradients, as in generation with a frozen memory: `memtx pages` by FlexAttention that
goes to the pages a row reads, `memtx gathered` by fused attention to chapters laid side by side.
Both are measured, whichever `memtx.ops.page_read.FASTER_ON` chooses on this device; `ratio` is
pages over gathered, `error` in a record says why it failed. `--tiny` measures nothing.

On a GPU bfloat16, batches of 1 and 64. On a CPU float32, batches of 1 and 8, one thread, and
`milliseconds` is the fastest by the processor's own time, since others may use the machine.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.clocks import ProcessorClock, clock_of, forget_peak, peak_gib
from benchmarks.records import Record, write_records
from memtx.ops import page_read as pages
from memtx.ops.routed_read import joint_read
from memtx.ops.segments import Segments

NAME = "page_read"
LIBRARIES = ["torch", "triton"]
PAGES, GATHERED = "memtx pages", "memtx gathered"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a read."""

    batch: int
    chapters: int
    tokens: int
    chosen: int
    heads: int
    width: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """What the record calls it."""
        dtype = str(self.dtype).removeprefix("torch.")
        memory = f"{self.chosen} of {self.chapters} x {self.tokens}"
        return f"decoded token, batch {self.batch}, {memory} {dtype}"


def cases(*, on_gpu: bool, tiny: bool) -> list[Case]:
    """Give the reads of the 371M stack, and with a bank four times as large."""
    batches, banks = ([1, 64], [4_097, 16_385]) if on_gpu else ([1, 8], [1_025])
    batches, banks = ([2], [16]) if tiny else (batches, banks)
    return [
        Case(
            batch=batch,
            chapters=chapters,
            tokens=4 if tiny else 64,
            chosen=3 if tiny else 65,
            heads=2 if tiny else 12,
            width=16 if tiny else 64,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
        )
        for chapters in banks
        for batch in batches
    ]


def drawn(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Draw query, keys, values, what is chosen and with what weight."""
    torch.manual_seed(0)
    given = {"device": device, "dtype": case.dtype}
    query = torch.randn(case.batch, 1, case.heads, case.width, **given)
    size = (case.chapters, case.tokens, case.heads, case.width)
    scores = torch.rand(case.batch, 1, case.chapters, device=device)
    weight, choice = scores.topk(case.chosen, dim=-1)
    return query, torch.randn(size, **given), torch.randn(size, **given), choice, weight.log()


def gathered(query: Tensor, key: Tensor, value: Tensor, choice: Tensor, weight: Tensor) -> Tensor:
    """Read chapters that are laid side by side."""
    number = torch.zeros(query.shape[:2], dtype=torch.long, device=query.device)
    segments = Segments(segment=number, real=number == 0, count=1, width=1, regular=True)
    return joint_read(query, key, value, choice, weight, segments, 0.0)


def compiled(read: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a read, in one graph."""
    return torch.compile(read, fullgraph=True)


@torch.no_grad()
def measured(read: Callable[..., Tensor], given: tuple[Tensor, ...], *, timed: int) -> Record:
    """Time one way to read, compiled; a failure is a result."""
    device = given[0].device
    known = pages.FASTER_ON
    pages.FASTER_ON = ()
    try:
        called = compiled(read)
        for _ in range(3):
            called(*given)
        forget_peak(device)
        before = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        clock = clock_of(device) if device.type == "cuda" else ProcessorClock()
        clock.log({})
        for _ in range(timed):
            called(*given)
            clock.log({})
        times = clock.milliseconds()
    except Exception as error:
        return {"milliseconds": None, "peak_gib": None, "error": f"{type(error).__name__}: {error}"}
    finally:
        pages.FASTER_ON = known
        torch.compiler.reset()
    on_gpu, peak = device.type == "cuda", peak_gib(device)
    return {
        "milliseconds": statistics.median(times) if on_gpu else min(times),
        "peak_gib": None if peak is None else peak - before,
    }


def records_of(case: Case, *, device: torch.device, timed: int) -> list[Record]:
    """Measure both ways."""
    given = drawn(case, device)
    ways = {PAGES: pages.page_read, GATHERED: gathered}
    found = {name: measured(way, given, timed=timed) for name, way in ways.items()}
    times = [found[name]["milliseconds"] for name in (PAGES, GATHERED)]
    if None not in times:
        found[PAGES]["ratio"] = times[0] / times[1]
    return [{"case": case.name, "variant": name, **record} for name, record in found.items()]


def main() -> int:
    """Run, write and print; 1 if a read failed."""
    parser = argparse.ArgumentParser(description="Time the read of a decoded token.")
    parser.add_argument("--tiny", action="store_true", help="sizes that measure nothing")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, also beside a GPU")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    torch.set_num_threads(torch.get_num_threads() if on_gpu else 1)
    name = NAME if on_gpu or options.tiny else f"{NAME}_cpu"
    records: list[Record] = []
    for case in cases(on_gpu=on_gpu, tiny=options.tiny):
        records += records_of(case, device=device, timed=3 if options.tiny else 40)
        for record in records[-2:]:
            time = record["milliseconds"]
            said = record.get("error", "-")[:200] if time is None else f"{time:.3f} ms"
            print(f"{record['case']:<60}{record['variant']:<16}{said}", flush=True)
        path = write_records(
            folder=options.output, name=name, device=device, libraries=LIBRARIES, records=records
        )
    print(path)
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
