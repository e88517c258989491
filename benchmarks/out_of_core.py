"""Generation with a bank on the GPU, in the host's memory and in a file; one larger than all that.

    PYTHONPATH=src:. python benchmarks/out_of_core.py --output benchmarks/results

First one model and one bank of 1,048,576 tokens of width 512, bfloat16, its rows in four places;
the weights, the prompt and so the choices are the same, and the tokens are compared. Weights are
random, so that every window chooses other chapters in every layer: the worst case for a cache.
Then banks of 16,777,216 tokens: reduced to 256 dimensions in 8 bits (needs bitsandbytes) and in
bfloat16, and factorized, each written in chunks to a file on the spot.

`milliseconds` is the mean of a generated token at batch 1, the host having the token each time;
`ratio` that over the bank on the GPU. A cold file is one that the system was told to drop from its
memory. `--size small` measures nothing, and is for a CPU; so is `--cpu`.
"""

import argparse
import copy
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clocks import forget_peak, peak_gib
from benchmarks.out_of_core_model import SIZES, VOCABULARY, Size, model_with
from benchmarks.records import Record, write_records
from memtx import (
    FactorizedMemoryBank,
    MappedMemoryBank,
    Normal,
    OffloadedMemoryBank,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    StandardMemoryBank,
    write_bank,
    write_rows,
)

NAME = "out_of_core"
ON_GPU = "memtx, bank where it is read"
LIBRARIES = ["torch", "transformers", "safetensors", "bitsandbytes"]
GIB = 2**30


@torch.inference_mode()
def generated(model: Any, prompt: Tensor, steps: int) -> tuple[list[int], list[float]]:
    """Greedy tokens, and the milliseconds of each but the first, whose call reads the prompt."""
    ids, cache = prompt, None
    tokens: list[int] = []
    times: list[float] = []
    for _ in range(steps):
        start = time.perf_counter()
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
        tokens.append(int(ids))  # the host waits for it
        times.append(1000.0 * (time.perf_counter() - start))
    return tokens, times[1:]


def measured(model: Any, bank: Any, size: Size, *, device: torch.device) -> Record:
    """Generate twice, another prompt first; what is kept of that one is forgotten."""
    prompts = torch.randint(
        0, VOCABULARY, (2, size.prompt), generator=torch.Generator().manual_seed(2)
    )
    generated(model, prompts[:1].to(device), size.window + 8)
    if hasattr(bank, "traffic"):
        bank.forget()
        before = dict(vars(bank.traffic))
    forget_peak(device)
    tokens, times = generated(model, prompts[1:].to(device), size.generated)
    found: Record = {
        "milliseconds": statistics.mean(times),
        "milliseconds_median": statistics.median(times),
        "milliseconds_max": max(times),
        "peak_gib": peak_gib(device),
        "host_resident_gib": resident_gib(),
        "tokens": tokens,
    }
    if hasattr(bank, "traffic"):
        found |= {key: value - before[key] for key, value in vars(bank.traffic).items()}
        found["places_gib"] = bank.resident_bytes / GIB
    return found


def resident_gib() -> float | None:
    """What the process has in memory, pages of files among it; None where it is not told."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return None
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / GIB


def drop_from_memory(path: Path) -> None:
    """Let the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def outline(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make().to(torch.bfloat16)


def one_model(size: Size, *, device: torch.device, folder: Path) -> Iterator[Record]:
    """The same model and choices, its bank in four places."""

    def plain() -> StandardMemoryBank:
        return StandardMemoryBank(num_memory_tokens=size.tokens, dim=size.dim, init=Normal(std=1.0))

    path, elsewhere = (
        folder / "bank.safetensors",
        {
            "tokens_per_chapter": size.chapter,
            "num_resident_chapters": size.places,
        },
    )
    torch.manual_seed(0)
    bank = plain().to(torch.bfloat16)
    write_bank(bank=bank, path=path)

    def in_file() -> MappedMemoryBank:
        return MappedMemoryBank.from_file(
            path=path, sha256=None, stored=outline(plain), **elsewhere
        )

    def cold() -> MappedMemoryBank:
        drop_from_memory(path)
        return in_file()

    def waiting() -> OffloadedMemoryBank:
        found = OffloadedMemoryBank(stored=bank, **elsewhere)
        vars(found)["fetch_ahead"] = _nothing
        return found

    makers: dict[str, Callable[[], Any]] = {
        ON_GPU: lambda: copy.deepcopy(bank),
        "memtx, host": lambda: OffloadedMemoryBank(stored=bank, **elsewhere),
        "memtx, host, nothing fetched ahead": waiting,
        "memtx, file": in_file,
        "memtx, cold file": cold,
    }
    records: dict[str, Record] = {}
    # The one that is compared with goes first and once more last, and the faster one counts.
    for name in [*makers, ON_GPU]:
        made = makers[name]()
        model = model_with(made, size, chapter=size.chapter, top_k=size.top_k, device=device)
        record = measured(model, made, size, device=device)
        known = records.get(name, record)
        records[name] = min(known, record, key=lambda each: each["milliseconds"])
        del model, made
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    wanted = records[ON_GPU]["tokens"]
    for name, record in records.items():
        yield {
            "case": f"generate, {size.tokens} x {size.dim}, {size.layers} reading layers",
            "variant": name,
            **{key: value for key, value in record.items() if key != "tokens"},
            "ratio": record["milliseconds"] / records[ON_GPU]["milliseconds"],
            "bank_gib": path.stat().st_size / GIB,
            "same_tokens": record["tokens"] == wanted,
        }
    path.unlink()


def _nothing(indices: Tensor) -> None:
    """In place of `fetch_ahead`."""


def larger_banks(size: Size) -> dict[str, Callable[[], Any]]:
    """Outlines of the banks that are larger, by name."""
    count, rank = size.larger_tokens, size.rank

    def small() -> QuantizedMemoryBank:
        return QuantizedMemoryBank(num_memory_tokens=count, dim=rank, bits=8, block_size=64)

    def reduced() -> ReducedDimMemoryBank:
        return ReducedDimMemoryBank(num_memory_tokens=count, rank=rank, init=Normal(std=1.0))

    def factorized() -> FactorizedMemoryBank:
        return FactorizedMemoryBank(
            num_memory_tokens=count, dim=size.dim, rank=rank // 2, init=Normal(std=1.0)
        )

    return {
        f"reduced to {rank}, 8 bits": small,
        f"reduced to {rank}, bfloat16": reduced,
        f"factorized by {rank // 2}, bfloat16": factorized,
    }


def larger_record(
    name: str, make: Callable[[], Any], size: Size, *, device: torch.device, folder: Path
) -> Record:
    """Write a bank in chunks, open it, and generate."""
    path, stored = folder / "bank.safetensors", outline(make)
    if isinstance(stored, FactorizedMemoryBank):
        directions = torch.randn(size.dim, size.rank // 2, dtype=torch.bfloat16)
        stored.directions = torch.nn.Parameter(directions * (2 / size.rank) ** 0.5)
    generator = torch.Generator(device).manual_seed(3)
    width = size.rank // 2 if isinstance(stored, FactorizedMemoryBank) else size.rank
    chunks = (
        torch.randn(size.chunk, width, generator=generator, device=device, dtype=torch.bfloat16)
        for _ in range(size.larger_tokens // size.chunk)
    )
    start = time.perf_counter()
    sha256 = write_rows(stored=stored, chunks=chunks, path=path)
    written = time.perf_counter()
    drop_from_memory(path)
    bank = MappedMemoryBank.from_file(
        path=path,
        sha256=sha256,
        stored=stored,
        tokens_per_chapter=size.larger_chapter,
        num_resident_chapters=size.places // 4,
    )
    opened = time.perf_counter()
    drop_from_memory(path)
    model = model_with(
        bank, size, chapter=size.larger_chapter, top_k=size.larger_top_k, device=device
    )
    record = measured(model, bank, size, device=device)
    record.pop("tokens")
    return {
        "case": f"generate, {size.larger_tokens} tokens, {name}",
        "variant": "memtx, cold file",
        **record,
        "ratio": None,
        "bank_gib": path.stat().st_size / GIB,
        "seconds_to_write": written - start,
        "seconds_to_open_by_sha256": opened - written,
    }


def larger(size: Size, *, device: torch.device, folder: Path) -> Iterator[Record]:
    """Each of the larger banks; a failure is a result."""
    for name, make in larger_banks(size).items():
        try:
            yield larger_record(name, make, size, device=device, folder=folder)
        except ImportError as error:
            yield {
                "case": f"generate, {size.larger_tokens} tokens, {name}",
                "variant": "memtx, cold file",
                "milliseconds": None,
                "peak_gib": None,
                "ratio": None,
                "error": f"{type(error).__name__}: {error}",
            }
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    head = ("case", "variant", "ms", "max", "ratio", "GPU GiB", "bank GiB", "host GiB", "missed")
    lines = ["{:<58}{:<37}{:>8}{:>8}{:>7}{:>9}{:>9}{:>9}{:>8}".format(*head)]
    for r in records:
        if "error" in r:
            lines.append(f"{r['case']:<58}{r['error'].splitlines()[0][:90]}")
            continue
        peak, ratio, host = r["peak_gib"], r["ratio"], r["host_resident_gib"]
        lines.append(
            f"{r['case']:<58}{r['variant']:<37}{r['milliseconds']:>8.2f}"
            f"{r['milliseconds_max']:>8.2f}{'-' if ratio is None else format(ratio, '.3f'):>7}"
            f"{'-' if peak is None else format(peak, '.2f'):>9}{r['bank_gib']:>9.3f}"
            f"{'-' if host is None else format(host, '.2f'):>9}{r.get('misses', '-'):>8}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run, write and print; 1 if a bank elsewhere gave other tokens."""
    parser = argparse.ArgumentParser(description="Time generation with banks out of core.")
    parser.add_argument("--size", choices=list(SIZES), default="large")
    parser.add_argument("--cpu", action="store_true", help="a CPU, also beside a GPU")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument("--folder", type=Path, help="where the banks are written meanwhile")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    records: list[Record] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for run in (one_model, larger):
            for record in run(SIZES[options.size], device=device, folder=Path(name)):
                records.append(record)
                print(table(records[-1:]), file=sys.stderr, flush=True)
    name = NAME if on_gpu else f"{NAME}_cpu"
    path = write_records(
        folder=options.output, name=name, device=device, libraries=LIBRARIES, records=records
    )
    print(f"{table(records)}\n{path}")
    return 0 if all(record.get("same_tokens", True) for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
