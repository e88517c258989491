"""One training step of a memory in a frozen Qwen2.5-1.5B, against PEFT's LoRA and prefix tuning.

    PYTHONPATH=src:. python3 benchmarks/adapter_step.py --output benchmarks/results

The base has the shape of Qwen2.5-1.5B and random weights. A step is forward, loss, backward,
clipping and AdamW on fresh random tokens; `frozen-base-forward` is the forward to the logits alone.
memtx trains by its own `Trainer`; rivals train by a plain loop with transformers' own loss, as
their users do, and LoRA once more by memtx's loop and chunked loss. Every variant runs twice, the
second time in reverse order, on a base of its own; numbers are over the steps of both runs.
`compiled` variants compile before the timed steps: memtx by `compile_parts`, LoRA layer by layer.

`memtx-routed` has a bank of 262,144 tokens, of which every row reads 1,024 in 16 chapters;
`memtx-routed-2048` reads as many as `memtx` has. Both have heads of 64, the width that a weighted
read is fast at, and gradients and an optimizer of the rows that were read. `--variants` measures
some of them: records of the others that are in the file stay there.

`memtx-locality` reads a second batch of the same size as background, three passes in all; its
tokens per second are those that are taught. Peaks are of what torch allocated after the warm-up,
weights included.
"""

import argparse
import gc
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config

from benchmarks.adapter_memories import memory_in_layers, routed_in_layers
from benchmarks.adapter_variants import Setting, variants
from benchmarks.clocks import Clock, clock_of, forget_peak, peak_gib
from benchmarks.records import Record, kept_records, write_records
from factories.qwen_adapter import memory_for_1_5b, memory_for_tiny

NAME = "adapter_step"
RIVAL = "peft-lora-r16"  # the record's `ratio` is over this one
LIBRARIES = ["torch", "transformers", "peft", "triton"]


def full_setting(device: torch.device) -> Setting:
    """Qwen2.5-1.5B's shape, 8 rows of 1,024 tokens."""
    return Setting(
        case="qwen2.5-1.5b-shape batch 8 x 1024 bf16",
        config=Qwen2Config(
            vocab_size=151_936,
            hidden_size=1_536,
            intermediate_size=8_960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            use_cache=False,
        ),
        batch=8,
        length=1_024,
        warm_up=3,
        timed=10,
        memory=memory_for_1_5b,
        upper_memory=lambda base: memory_in_layers(
            base=base,
            layers=[23, 24, 25, 26, 27],
            num_memory_tokens=2_048,
            dim=1_536,
            kv_dim=256,
            num_heads=12,
            num_kv_heads=2,
        ),
        routed_memory=lambda base, chapters_read: routed_in_layers(
            base=base,
            layers=[0, 1, 2, 3, 4, 23, 24, 25, 26, 27],
            num_chapters=4_096,
            tokens_per_chapter=64,
            chapters_read=chapters_read,
            dim=1_536,
            kv_dim=256,
            num_heads=24,
            num_kv_heads=4,
        ),
        chapters_read=(16, 32),
        virtual_tokens=2_048,
        device=device,
    )


def tiny_setting(device: torch.device) -> Setting:
    """The same case at a size for a CPU: it shows that the script runs, and measures nothing."""
    return Setting(
        case="qwen2-tiny-shape batch 2 x 16 bf16",
        config=Qwen2Config(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            use_cache=False,
        ),
        batch=2,
        length=16,
        warm_up=1,
        timed=2,
        memory=memory_for_tiny,
        upper_memory=lambda base: memory_in_layers(
            base=base,
            layers=[3],
            num_memory_tokens=32,
            dim=128,
            kv_dim=64,
            num_heads=4,
            num_kv_heads=2,
        ),
        routed_memory=lambda base, chapters_read: routed_in_layers(
            base=base,
            layers=[0, 1, 2, 3],
            num_chapters=16,
            tokens_per_chapter=8,
            chapters_read=chapters_read,
            dim=128,
            kv_dim=64,
            num_heads=4,
            num_kv_heads=2,
        ),
        chapters_read=(2, 4),
        virtual_tokens=8,
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class FromThen:
    """A clock that has the peak counted from the end of the warm-up on: compilers take more."""

    setting: Setting
    clock: Clock

    def begin(self, step: int) -> None:
        self.clock.begin(step)

    def log(self, record: dict[str, float]) -> None:
        """Tick; the face of a `Logger`."""
        self.clock.log(record)
        if self.clock.count == self.setting.warm_up:
            forget_peak(self.setting.device)

    def close(self) -> None:
        self.clock.close()

    def milliseconds(self) -> list[float]:
        """Give the time from each tick to the next."""
        return self.clock.milliseconds()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of a variant gave: times of the timed steps, or why there are none."""

    milliseconds: list[float]
    peak_gib: float | None
    trainable_parameters: int | None
    error: str | None


def run_once(*, setting: Setting, name: str) -> Run:
    """Build a variant, run it, and give its memory back; a failure is a result."""
    try:
        return _run(setting=setting, name=name)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Run(milliseconds=[], peak_gib=None, trainable_parameters=None, error=text)


def _run(*, setting: Setting, name: str) -> Run:
    prepared = variants(setting)[name]()
    clock = FromThen(setting=setting, clock=clock_of(setting.device))
    prepared.run(clock)
    trained = [p.numel() for p in prepared.model.parameters() if p.requires_grad]
    return Run(
        # The first tick ends the first step, so a warm-up of one step leaves out nothing more.
        # memtx's loop tells of a step when the next one is launched, and of the last one with it.
        milliseconds=clock.milliseconds()[setting.warm_up - 1 : -1],
        peak_gib=peak_gib(setting.device),
        trainable_parameters=sum(trained),
        error=None,
    )


def run_all(setting: Setting, names: list[str]) -> dict[str, list[Run]]:
    """Run variants, and all again in reverse order, so that a drift falls on all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for name in [*names, *reversed(names)]:
        runs[name].append(run_once(setting=setting, name=name))
        print(f"{name}: {runs[name][-1].error or 'ran'}", file=sys.stderr, flush=True)
        torch.compiler.reset()  # no variant meets what another one compiled
        # A model and its hooks refer to each other: only the collector frees them.
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return runs


def record_of(*, setting: Setting, name: str, runs: list[Run]) -> Record:
    """Put the runs of a variant into its record."""
    record: Record = {"case": setting.case, "variant": name, "milliseconds": None, "peak_gib": None}
    errors = [run.error for run in runs if run.error is not None]
    if errors:
        return {**record, "error": errors[0]}
    times = [time for run in runs for time in run.milliseconds]
    peaks = [run.peak_gib for run in runs if run.peak_gib is not None]
    median = statistics.median(times)
    return {
        **record,
        "milliseconds": median,
        "milliseconds_min": min(times),
        "milliseconds_max": max(times),
        "milliseconds_of_runs": [statistics.median(run.milliseconds) for run in runs],
        "steps": len(times),
        "tokens_per_second": setting.batch * setting.length / (median / 1000.0),
        "peak_gib": max(peaks) if peaks else None,
        "trainable_parameters": runs[0].trainable_parameters,
    }


def add_ratios(records: list[Record]) -> None:
    """Set memtx over each rival, in time and memory, in memtx's records; a large bank over ours."""
    others = [r for r in records if not r["variant"].startswith("memtx")]
    small = [r for r in records if r["variant"] in ("memtx", "memtx-compiled")]
    for record in records:
        if record["variant"].startswith("memtx"):
            rivals = others + (small if "routed" in record["variant"] else [])
            ratios = {
                rival["variant"]: {
                    "time": quotient(record["milliseconds"], rival["milliseconds"]),
                    "memory": quotient(record["peak_gib"], rival["peak_gib"]),
                }
                for rival in rivals
            }
            record |= {"ratio": ratios.get(RIVAL, {}).get("time"), "ratios": ratios}


def quotient(above: float | None, below: float | None) -> float | None:
    """Divide where both were measured."""
    return None if above is None or below is None else above / below


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    lines = [
        f"{'variant':<28}{'ms':>9}{'min':>9}{'max':>9}{'tokens/s':>11}{'GiB':>8}{'trained':>13}"
        f"{'ratio':>8}"
    ]
    for r in records:
        if "error" in r:
            lines.append(f"{r['variant']:<28} {r['error'].splitlines()[0][:66]}")
            continue
        peak = "-" if r["peak_gib"] is None else f"{r['peak_gib']:.2f}"
        ratio = "-" if r.get("ratio") is None else f"{r['ratio']:.3f}"
        lines.append(
            f"{r['variant']:<28}{r['milliseconds']:>9.2f}{r['milliseconds_min']:>9.2f}"
            f"{r['milliseconds_max']:>9.2f}{r['tokens_per_second']:>11,.0f}{peak:>8}"
            f"{r['trainable_parameters']:>13,}{ratio:>8}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run, write and print; 1 if a variant of memtx failed."""
    parser = argparse.ArgumentParser(description="Time a training step of memtx and its rivals.")
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU; measures nothing")
    parser.add_argument("--variants", nargs="+", help="names of those to run; all if absent")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    setting = tiny_setting(device) if options.tiny else full_setting(device)
    runs = run_all(setting, options.variants or list(variants(setting)))
    records = [record_of(setting=setting, name=name, runs=runs[name]) for name in runs]
    add_ratios(records)
    kept = kept_records(options.output / f"{NAME}.json", records, keys=("case", "variant"))
    path = write_records(
        folder=options.output, name=NAME, device=device, libraries=LIBRARIES, records=kept + records
    )
    print(f"{setting.case}\n{table(records)}\n{path}")
    failed = [r for r in records if "error" in r and r["variant"].startswith("memtx")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
