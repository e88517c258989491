"""What a memory costs a generated token: the bare base, the memory as it is, and frozen.

    PYTHONPATH=src:. python3 benchmarks/generation.py --size 1.5b --batches 1 64 \
        --output benchmarks/results

The base has the shape of Qwen2.5-1.5B and random weights in bfloat16, the memory 2,048 tokens in
float32, read in layers 0 to 4 and 23 to 27. `generate` decodes greedily with a static cache, which
transformers compiles into CUDA graphs on a GPU. A streamer ticks when each token is on the host:
the time of a token is the median from one tick to the next, without the prompt and the first tokens
of each `generate`, in which the graphs are recorded. `prompt_milliseconds` is that of the prompt.

Variants: `base` without a memory; `memtx` with the memory, projected for each token;
`memtx-frozen` after `freeze_for_inference` in the dtype of the projections, `memtx-frozen-bf16` in
bfloat16, `memtx-frozen-8bit` in 8 bits; and `memtx-bf16-frozen` with the memory itself cast to
bfloat16 and frozen. `ratio` is the time of a token over that of the base, measured before and after
all others in the same process.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.adapter_step import full_setting, quotient, tiny_setting
from benchmarks.adapter_variants import Memory
from benchmarks.clocks import forget_peak, peak_gib
from benchmarks.records import Record, kept_records, write_records
from memtx import MemoryAdapter
from memtx.generate import AsProjected, InDtype, InEightBits, freeze_for_inference

NAME = "generation"
LIBRARIES = ["torch", "transformers", "triton"]
BASE = "base"
VARIANTS = (
    BASE,
    "memtx",
    "memtx-frozen",
    "memtx-frozen-bf16",
    "memtx-frozen-8bit",
    "memtx-bf16-frozen",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The base, the memory in it, and how much is generated."""

    name: str
    config: Qwen2Config
    memory: Memory
    prompt: int
    new_tokens: int
    left_out: int
    rounds: int
    device: torch.device


def setting_of(size: str, device: torch.device) -> Setting:
    """Give the sizes: those of Qwen2.5-1.5B, or of a model for a CPU, which measures nothing."""
    full = size == "1.5b"
    step = (full_setting if full else tiny_setting)(device)
    return Setting(
        name=step.case.partition(" batch")[0],
        config=step.config,
        memory=step.memory,
        prompt=128 if full else 8,
        new_tokens=128 if full else 5,
        left_out=16 if full else 0,
        rounds=4 if full else 2,
        device=device,
    )


def base_of(setting: Setting) -> Any:
    """Make the base with random weights, on the device from the start."""
    torch.manual_seed(0)
    with setting.device:
        base = AutoModelForCausalLM.from_config(setting.config, dtype=torch.bfloat16)
    return base.eval().requires_grad_(False)


@torch.no_grad()
def with_memory(base: nn.Module, setting: Setting, *, dtype: torch.dtype) -> MemoryAdapter:
    """Attach a memory that adds something to the stream."""
    with setting.device:
        adapter = setting.memory(base)
    for name, parameter in adapter.named_memory_parameters():
        if "o_proj" in name:
            parameter.normal_(0.0, 0.02)
    for part in (*adapter.banks, *adapter.insertions):
        part.to(dtype)
    return adapter.eval()


@contextmanager
def prepared(name: str, setting: Setting) -> Iterator[Any]:
    """Give the model of a variant, on a base of its own."""
    base = base_of(setting)
    if name == BASE:
        yield base
        return
    narrow = name == "memtx-bf16-frozen"
    adapter = with_memory(base, setting, dtype=torch.bfloat16 if narrow else torch.float32)
    frozen: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "memtx": nullcontext,
        "memtx-frozen": lambda: freeze_for_inference(adapter, storage=AsProjected()),
        "memtx-bf16-frozen": lambda: freeze_for_inference(adapter, storage=AsProjected()),
        "memtx-frozen-bf16": lambda: freeze_for_inference(
            adapter, storage=InDtype(dtype=torch.bfloat16)
        ),
        "memtx-frozen-8bit": lambda: freeze_for_inference(adapter, storage=InEightBits()),
    }
    with frozen[name]():
        yield adapter


class TokenClock:
    """Ticks when the prompt is taken, and when each token is on the host: a streamer."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def put(self, value: Tensor) -> None:
        """Tick; `generate` gives the tokens."""
        self.ticks.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is open."""

    def milliseconds(self) -> list[float]:
        """Give the time of the prompt with the first token, then that of each token."""
        pairs = zip(self.ticks, self.ticks[1:], strict=False)
        return [1_000.0 * (second - first) for first, second in pairs]


def generated(model: Any, ids: Tensor, *, new_tokens: int) -> list[float]:
    """Decode greedily with a static cache; give the time of the prompt and of each token."""
    clock = TokenClock()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        cache_implementation="static",
        pad_token_id=0,
        eos_token_id=None,
        streamer=clock,
        # On a CPU nothing is compiled, with or without this.
        disable_compile=ids.device.type != "cuda",
    )
    if out.shape[1] != ids.shape[1] + new_tokens:
        raise RuntimeError(f"as many tokens as asked for must come, got {out.shape[1]}")
    return clock.milliseconds()


def run(name: str, *, batch: int, setting: Setting) -> Record:
    """Measure one variant; a failure is a result."""
    record: Record = {
        "case": f"{setting.name} generate batch {batch} prompt {setting.prompt}",
        "variant": name,
        "milliseconds": None,
        "peak_gib": None,
    }
    size = (batch, setting.prompt)
    started = time.perf_counter()
    try:
        with prepared(name, setting) as model:
            ids = torch.randint(setting.config.vocab_size, size, device=setting.device)
            for _ in range(2):
                generated(model, ids, new_tokens=setting.new_tokens)
            forget_peak(setting.device)
            tokens, prompts = [], []
            for _ in range(setting.rounds):
                prompt, *each = generated(model, ids, new_tokens=setting.new_tokens)
                prompts.append(prompt)
                tokens += each[setting.left_out :]
    except Exception as error:
        return {**record, "error": f"{type(error).__name__}: {error}"}
    median = statistics.median(tokens)
    print(
        f"{name} batch {batch}: {median:.3f} ms a token, "
        f"{time.perf_counter() - started:.0f} s in all",
        file=sys.stderr,
        flush=True,
    )
    return {
        **record,
        "milliseconds": median,
        "milliseconds_min": min(tokens),
        "milliseconds_max": max(tokens),
        "prompt_milliseconds": statistics.median(prompts),
        "tokens_per_second": 1_000.0 * batch / median,
        "peak_gib": peak_gib(setting.device),
    }


def records_of(
    *, names: list[str], batch: int, setting: Setting, keep: Callable[[list[Record]], object]
) -> list[Record]:
    """Measure the base, the variants and the base again, and set them over the base.

    What there is is kept after each, so that a run that is stopped keeps it.
    """
    records: list[Record] = []
    for name in [BASE, *(name for name in names if name != BASE), BASE]:
        records.append(run(name, batch=batch, setting=setting))
        set_over_base(records)
        keep(records)
        torch.compiler.reset()  # no variant meets what another one compiled
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return records


def set_over_base(records: list[Record]) -> None:
    """Set each variant over the base, before and, once it is there, after all others."""
    found = [record for record in records if record["variant"].startswith(BASE)]
    if len(found) > 1:
        found[1]["variant"] = f"{BASE}-again"
    bases = [record["milliseconds"] for record in found if record["milliseconds"]]
    for record in (each for each in records if each not in found):
        record["ratio"] = quotient(
            record["milliseconds"], statistics.mean(bases) if bases else None
        )


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    lines = [f"{'case':<52}{'variant':<20}{'ms/token':>10}{'prompt ms':>11}{'GiB':>8}{'ratio':>8}"]
    for r in records:
        start = f"{r['case']:<52}{r['variant']:<20}"
        if "error" in r:
            lines.append(f"{start} {r['error'].splitlines()[0][:80]}")
            continue
        peak = "-" if r["peak_gib"] is None else f"{r['peak_gib']:.2f}"
        ratio = "-" if r.get("ratio") is None else f"{r['ratio']:.3f}"
        numbers = f"{r['milliseconds']:>10.3f}{r['prompt_milliseconds']:>11.2f}"
        lines.append(f"{start}{numbers}{peak:>8}{ratio:>8}")
    return "\n".join(lines)


def main() -> int:
    """Run, write and print; 1 if a variant failed."""
    parser = argparse.ArgumentParser(description="Time generated tokens with and without memory.")
    parser.add_argument("--size", choices=["tiny", "1.5b"], required=True)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, whatever else there is")
    parser.add_argument("--batches", type=int, nargs="+", required=True, help="rows of a batch")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    setting = setting_of(options.size, device)
    records: list[Record] = []
    path = options.output / f"{NAME}.json"

    def keep(found: list[Record]) -> None:
        new = records + found
        kept = kept_records(path, new, keys=("case", "variant"))
        write_records(
            folder=path.parent, name=NAME, device=device, libraries=LIBRARIES, records=kept + new
        )

    for batch in options.batches:
        records += records_of(names=options.variants, batch=batch, setting=setting, keep=keep)
    print(f"{table(records)}\n{path}")
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
