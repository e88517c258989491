"""Where the time of `adapter_step` goes: a memory's step cut into its parts, eager and compiled.

    PYTHONPATH=src:. python3 benchmarks/adapter_profile.py --output benchmarks/results

Each part of a step is timed by itself, between two waits for the GPU, so the parts add up to a
little more than a step. A part's `floor_milliseconds` is its count of floating-point operations
(matrix products and attention) over the rate of a large product on the same GPU. `kernels` splits
one whole step by what its kernels do, as torch's profiler saw them.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.adapter_step import LIBRARIES, full_setting, tiny_setting
from benchmarks.adapter_variants import CHUNK, CLIP_NORM, RandomTokens, Setting, random_base
from benchmarks.clocks import forget_peak, peak_gib
from benchmarks.kernels import kernels_of, milliseconds, rate_of_products
from benchmarks.records import Record, write_records
from memtx import MemoryAdapter
from memtx.adapters.compilation import compile_parts
from memtx.adapters.families import decoder_layers
from memtx.ops.linear_losses import chunked_cross_entropy

NAME = "adapter_profile"


class Step:
    """A training step whose parts can be called one by one."""

    def __init__(self, *, setting: Setting, compiled: bool) -> None:
        self.setting = setting
        self.compiled = compiled
        self.adapter = setting.memory(random_base(setting))
        if compiled:
            compile_parts(self.adapter)
        self.trained = list(self.adapter.memory_parameters())
        on_gpu = setting.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-4, fused=on_gpu)
        self.batch = RandomTokens(setting=setting).draw()
        self.hidden: Any = None
        self.loss: Any = None

    def forward(self) -> None:
        with self.autocast():
            self.hidden = self.adapter.halves().hidden_states(
                input_ids=self.batch["input_ids"],
                attention_mask=self.batch["attention_mask"],
                position_ids=None,
                labels=None,
            )

    def take_loss(self) -> None:
        targets = self.batch["labels"][:, 1:].flatten()
        with self.autocast():
            self.loss = chunked_cross_entropy(
                self.hidden[:, :-1].flatten(0, 1), targets, self.adapter.halves().head, CHUNK
            )

    def backward(self) -> None:
        (self.loss / self.batch["labels"].numel()).backward()
        self.hidden = self.loss = None

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def whole(self) -> None:
        """Take one step, as fast as it goes."""
        for part in (self.forward, self.take_loss, self.backward, self.update):
            part()

    def base_forward(self) -> None:
        """The base alone, to its hidden states: what no adapter can do without."""
        with torch.no_grad(), self.adapter.disabled():
            self.forward()
        self.hidden = None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.setting.device.type, dtype=torch.bfloat16)

    def parts(self) -> dict[str, Callable[[], None]]:
        return {
            "forward": self.forward,
            "loss": self.take_loss,
            "backward": self.backward,
            "update": self.update,
            "base forward alone": self.base_forward,
        }


def operations(*, setting: Setting, adapter: MemoryAdapter) -> dict[str, float]:
    """Count the floating-point operations of each part, in matrix products and attention."""
    config, tokens = setting.config, setting.batch * setting.length
    layers = decoder_layers(adapter.base)
    weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
    # Every position attends to half of them on average; scores, and what they weigh.
    attention = 4.0 * tokens * setting.length / 2 * config.hidden_size * len(layers)
    memory = adapter.banks[0].num_memory_tokens
    projections = sum(
        2.0 * (memory if "k_proj" in name or "v_proj" in name else tokens) * p.numel()
        for name, p in adapter.insertions.named_parameters()
        if p.dim() == 2 and ".bank." not in name
    )
    read = 4.0 * tokens * memory * config.hidden_size * len(adapter.insertions)
    base = 2.0 * tokens * weights
    return {
        "forward": base + attention + projections + read,
        "loss": 2 * 2.0 * tokens * config.vocab_size * config.hidden_size,
        # Of the frozen base for activations alone; an attention's backward is 5 products to 2.
        "backward": base + 2.5 * attention + 2 * projections + 2.5 * read,
        "update": 0.0,
        "base forward alone": base + attention,
    }


def records_of_parts(*, setting: Setting, step: Step, rate: float) -> list[Record]:
    """Time every part of a step, one step after another."""
    device, name = setting.device, "memtx-compiled" if step.compiled else "memtx"
    times: dict[str, list[float]] = {part: [] for part in step.parts()}
    for number in range(setting.steps):
        for part, call in step.parts().items():
            time = milliseconds(device=device, call=call)
            if number >= setting.warm_up:
                times[part].append(time)
    needed = operations(setting=setting, adapter=step.adapter)
    return [
        {
            "case": setting.case,
            "variant": name,
            "part": part,
            "milliseconds": statistics.median(times[part]),
            "floor_milliseconds": needed[part] / rate,
        }
        for part in times
    ]


def profile_step(*, setting: Setting, compiled: bool, rate: float) -> list[Record]:
    """Give the records of one way to run the step."""
    step = Step(setting=setting, compiled=compiled)
    forget_peak(setting.device)
    records = records_of_parts(setting=setting, step=step, rate=rate)
    if setting.device.type == "cuda":
        seen = kernels_of(step.whole, device=setting.device, count=1)
        records[0] |= {"peak_gib": peak_gib(setting.device), "kernels": seen}
    return records


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description="Time the parts of a memory's training step.")
    parser.add_argument("--tiny", action="store_true", help="a size for a CPU; measures nothing")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    setting = tiny_setting(device) if options.tiny else full_setting(device)
    rate = rate_of_products(device)
    records: list[Record] = []
    for compiled in (False, True):
        records += profile_step(setting=setting, compiled=compiled, rate=rate)
        gc.collect()
    path = write_records(
        folder=options.output, name=NAME, device=device, libraries=LIBRARIES, records=records
    )
    for r in records:
        print(
            f"{r['variant']:<16}{r['part']:<20}{r['milliseconds']:>9.2f}"
            f"{r['floor_milliseconds']:>9.2f}  {r.get('kernels', '')}"
        )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
