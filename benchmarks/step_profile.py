"""Where the time of the three main steps goes, and how far each is from its floor.

    PYTHONPATH=src:. python3 benchmarks/step_profile.py --seconds 110 --output benchmarks/results

`chapters`: the compiled training step of the 371M mixture of chapters (`mixture_of_chapters`) and
of its control. `adapter`: the compiled training step of a memory in the 1.5B shape
(`adapter_step`). `token`: a token that `generate` adds on the 1.5B shape with frozen memory and
without (`generation`), and `chapter-token` one of the 371M stack and its control, all with a static
cache in bfloat16. `--parts` names which of these run; a step that fails is a record with its error.
Records that are not made anew stay in the file, which is written after each. No step is begun when
`--seconds` are over, so that a lent device is given back in time.

`milliseconds` is the median of steps that nobody watches. `kernels` is the time of a step's kernels
by kind, as torch's profiler saw them in other steps, and `idle` what they leave of the median; on a
CPU the operators stand for kernels. The floor of a training step is its floating-point operations
over the rate of a large product, and the bytes that AdamW moves over the rate of a large copy; that
of a token is the bytes it reads (every weight, the chapters or memory tokens it attends to, the
text in the cache) over that rate. Both rates are measured first, in the same process.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import adapter_profile, adapter_step, generation, mixture_of_chapters
from benchmarks.clocks import clock_of, forget_peak, peak_gib
from benchmarks.floors import operations_of_step, read_by_token, update_bytes
from benchmarks.kernels import Profiler, kernels_of, rate_of_copies, rate_of_products, with_idle
from benchmarks.records import Record, kept_records, write_records
from memtx import MemtxForCausalLM
from memtx.generate import AsProjected, freeze_for_inference

NAME = "step_profile"
LIBRARIES = ["torch", "transformers", "triton"]
CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What runs it, how fast that is, and how many steps are taken."""

    device: torch.device
    tiny: bool
    products: float
    copies: float

    @property
    def warm_up(self) -> int:
        """Steps before any is timed."""
        return 1 if self.tiny else 5

    @property
    def timed(self) -> int:
        """Steps that are timed."""
        return 2 if self.tiny else 12

    @property
    def watched(self) -> int:
        """Steps, or tokens, that the profiler sees."""
        return 2 if self.tiny else 8


class ChaptersStep:
    """A compiled training step of the 371M stack, as `mixture_of_chapters` takes it."""

    def __init__(self, *, case: mixture_of_chapters.Setting, name: str) -> None:
        torch.manual_seed(0)
        self.case = case
        with case.device:
            self.model = case.stacks[name]().train()
        self.called = torch.compile(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=mixture_of_chapters.LEARNING_RATE,
            betas=mixture_of_chapters.BETAS,
            weight_decay=0.1,
            fused=True,
        )

    def whole(self) -> None:
        """Take one step."""
        size = (self.case.batch, self.case.length)
        ids = torch.randint(self.model.embedding.vocab_size, size, device=self.case.device)
        with torch.autocast(self.case.device.type, dtype=torch.bfloat16):
            loss = self.called(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), mixture_of_chapters.CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def trained(
    step: Callable[[], object], *, model: nn.Module, batch: int, length: int, setting: Setting
) -> Record:
    """Time and watch a training step, and set it over its floor."""
    clock = clock_of(setting.device)
    for _ in range(setting.warm_up):
        step()
    forget_peak(setting.device)
    clock.log({})
    for _ in range(setting.timed):
        step()
        clock.log({})
    median = statistics.median(clock.milliseconds())
    kernels = kernels_of(step, device=setting.device, count=setting.watched)
    arithmetic = operations_of_step(model, batch=batch, length=length) / setting.products
    update = update_bytes(model) / setting.copies
    return {
        "milliseconds": median,
        "tokens_per_second": 1_000.0 * batch * length / median,
        "peak_gib": peak_gib(setting.device),
        "floor_milliseconds": arithmetic + update,
        "floor": {"arithmetic": arithmetic, "update": update},
        "kernels": with_idle(kernels, median),
    }


class Watched:
    """A model whose `generate` is seen by a profiler for so many tokens, after the first ones."""

    def __init__(self, *, model: Any, profiler: Profiler, after: int, count: int) -> None:
        self.model = model
        self.profiler = profiler
        self.after = after
        self.count = count
        self.ticks = 0
        self.streamer: Any = None

    def generate(self, **given: Any) -> Any:
        """Generate, and hear of each token before the streamer that was given."""
        self.streamer = given["streamer"]
        return self.model.generate(**{**given, "streamer": self})

    def put(self, value: torch.Tensor) -> None:
        """Begin or end to look; the first tick is the prompt's."""
        self.streamer.put(value)
        if self.ticks == self.after:
            self.profiler.start()
        if self.ticks == self.after + self.count:
            self.profiler.stop()
        self.ticks += 1

    def end(self) -> None:
        """Nothing is open."""


def decoded(model: Any, *, vocabulary: int, batch: int, prompt: int, setting: Setting) -> Record:
    """Time and watch the tokens of `generate`, and set them over their floor."""
    left_out, rounds = (1, 1) if setting.tiny else (16, 2)
    new = left_out + (setting.watched + 2 if setting.tiny else 64)
    ids = torch.randint(vocabulary, (batch, prompt), device=setting.device)
    for _ in range(2):
        generation.generated(model, ids, new_tokens=new)
    forget_peak(setting.device)
    tokens = []
    for _ in range(rounds):
        _, *each = generation.generated(model, ids, new_tokens=new)
        tokens += each[left_out:]
    median, peak = statistics.median(tokens), peak_gib(setting.device)
    profiler = Profiler(setting.device)
    watched = Watched(model=model, profiler=profiler, after=left_out, count=setting.watched)
    generation.generated(watched, ids, new_tokens=new)
    read = read_by_token(model, batch=batch, text=prompt + new // 2)
    return {
        "milliseconds": median,
        "tokens_per_second": 1_000.0 * batch / median,
        "peak_gib": peak,
        "floor_milliseconds": sum(read.values()) / setting.copies,
        "floor": {kind: size / setting.copies for kind, size in read.items()},
        "kernels": with_idle(profiler.kernels(each=setting.watched), median),
    }


def chapters_part(name: str, batch: int, setting: Setting) -> Record:
    """Profile a training step of the 371M stack."""
    make = mixture_of_chapters.tiny_setting if setting.tiny else mixture_of_chapters.full_setting
    case = make(batch=batch, device=setting.device)
    step = ChaptersStep(case=case, name=name)
    size = {"batch": batch, "length": case.length}
    return {"case": case.case} | trained(step.whole, model=step.model, **size, setting=setting)


def adapter_part(name: str, batch: int, setting: Setting) -> Record:
    """Profile a training step of a memory in the 1.5B shape."""
    make = adapter_step.tiny_setting if setting.tiny else adapter_step.full_setting
    case = replace(make(setting.device), batch=batch)
    step = adapter_profile.Step(setting=case, compiled=name == "memtx-compiled")
    size = {"batch": case.batch, "length": case.length}
    return {"case": case.case} | trained(step.whole, model=step.adapter, **size, setting=setting)


def token_part(name: str, batch: int, setting: Setting) -> Record:
    """Profile a generated token on the 1.5B shape."""
    case = generation.setting_of("tiny" if setting.tiny else "1.5b", setting.device)
    title = f"{case.name} generate batch {batch} prompt {case.prompt}"
    sizes = {"vocabulary": case.config.vocab_size, "batch": batch, "prompt": case.prompt}
    with generation.prepared(name, case) as model:
        return {"case": title} | decoded(model, **sizes, setting=setting)


def chapter_token_part(name: str, batch: int, setting: Setting) -> Record:
    """Profile a generated token of the 371M stack, or of its control."""
    make = mixture_of_chapters.tiny_setting if setting.tiny else mixture_of_chapters.full_setting
    prompt = 8 if setting.tiny else 128
    with composed(make(batch=batch, device=setting.device), name) as model:
        vocabulary = model.config.vocab_size
        measured = decoded(
            model, vocabulary=vocabulary, batch=batch, prompt=prompt, setting=setting
        )
    title = "tiny stack" if setting.tiny else "mixture-of-chapters 371M"
    return {"case": f"{title} generate batch {batch} prompt {prompt}"} | measured


@contextmanager
def composed(case: mixture_of_chapters.Setting, name: str) -> Iterator[Any]:
    """Give a stack with its memory frozen and Hugging Face's face."""
    torch.manual_seed(0)
    with case.device:
        model = case.stacks[name.removesuffix("-frozen")]().to(torch.bfloat16).eval()
    if name == CONTROL:
        yield MemtxForCausalLM.from_model(model)
        return
    with freeze_for_inference(model, storage=AsProjected()):
        yield MemtxForCausalLM.from_model(model)


# What runs, by part, in this order: the memories come before what they are compared with.
PARTS: dict[str, tuple[Callable[[str, int, Setting], Record], list[str]]] = {
    "chapters": (chapters_part, ["memtx-sequence"]),
    "token": (token_part, ["memtx-bf16-frozen"]),
    "chapter-token": (chapter_token_part, ["memtx-rolling-128-frozen"]),
    "adapter": (adapter_part, ["memtx-compiled"]),
    "chapters-control": (chapters_part, [CONTROL]),
    "token-base": (token_part, [generation.BASE]),
    "chapter-token-control": (chapter_token_part, [CONTROL]),
}


def profiled(part: str, name: str, *, batch: int, setting: Setting) -> Record:
    """Profile one step; a failure is a result."""
    given: Record = {"part": part, "variant": name, "rows": batch}
    started = time.perf_counter()
    try:
        record = given | PARTS[part][0](name, batch, setting)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        record = given | {"case": part, "milliseconds": None, "peak_gib": None, "error": text}
    torch.compiler.reset()  # no step meets what another one compiled
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"{shown(record)}  {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return record


def shown(record: Record) -> str:
    """Write a record in a line."""
    start = f"{record['part']:<22}{record['variant']:<26}{record['rows']:>4}"
    if "error" in record:
        return f"{start} {record['error'].splitlines()[0][:80]}"
    kernels = ", ".join(f"{kind} {time:.2f}" for kind, time in record["kernels"].items())
    return f"{start}{record['milliseconds']:>9.2f}{record['floor_milliseconds']:>9.2f}  {kernels}"


def rows_of(part: str, options: argparse.Namespace) -> list[int]:
    """Give the rows of a part: of a training step one number, of a token as many as were asked."""
    if "token" in part:
        return list(options.batches)
    return [2 if options.tiny else 8] if part == "adapter" else [2 if options.tiny else 16]


def main() -> int:
    """Run, write after each step, and print; 1 if one failed."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description="Profile the three main steps.")
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU; measures nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="rows of tokens")
    parser.add_argument("--seconds", type=float, required=True, help="begin nothing after these")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    kernels_of(lambda: torch.ones(8, device=device), device=device, count=1)  # before any graph
    products, copies = rate_of_products(device), rate_of_copies(device)
    setting = Setting(device=device, tiny=options.tiny, products=products, copies=copies)
    rates = {"flops_per_millisecond": products, "bytes_per_millisecond": copies}
    path, records = options.output / f"{NAME}.json", []
    for part in options.parts:
        for name, rows in [(n, r) for n in PARTS[part][1] for r in rows_of(part, options)]:
            if time.perf_counter() - started > options.seconds:
                print(f"{part} {name} {rows}: the time is over", file=sys.stderr, flush=True)
                continue
            records.append(profiled(part, name, batch=rows, setting=setting) | rates)
            kept = kept_records(path, records, keys=("part", "variant", "rows"))
            write_records(
                folder=options.output,
                name=NAME,
                device=device,
                libraries=LIBRARIES,
                records=kept + records,
            )
    print("\n".join([shown(record) for record in records] + [str(path)]))
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
