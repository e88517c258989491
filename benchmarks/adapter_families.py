"""What a memory costs over the bare base, and over PEFT's LoRA, in each family of models.

    PYTHONPATH=src:. python3 benchmarks/adapter_families.py --size tiny --output benchmarks/results
    PYTHONPATH=src:. python3 benchmarks/adapter_families.py --size 1.5b --output benchmarks/results

Every family has a base of the same sizes with random weights of its own class. Two jobs: a training
step (forward, the model's own loss, backward, clipping, AdamW; for the bare base, which has nothing
to train, the forward and its loss alone) and decoding (greedy, with the cache; milliseconds are of
one token). The memory is one bank read by cross-attention after the attention of some layers (after
the MLP where there is no other place); LoRA is of rank 16 on queries and values. Variants take
turns, forth and back, each time on a base of their own; numbers are over all turns.

`1.5b` is for a GPU, in bfloat16 with the trained part in float32 under autocast; `tiny` is for a
CPU, in float32, and shows what hooks and calls cost where arithmetic costs nothing.
"""

import argparse
import gc
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.clocks import Clock, clock_of, forget_peak, peak_gib
from benchmarks.family_models import MODELS, SIZES, Model, Size, base_of
from benchmarks.records import Record, write_records
from memtx import (
    Insertion,
    Linear,
    MemoryAdapter,
    MemoryCrossAttention,
    Normal,
    Residual,
    RMSNorm,
    StandardMemoryBank,
    Zeros,
)

NAME = "adapter_families"
LIBRARIES = ["torch", "transformers", "peft"]
BARE, MEMORY, LORA = "bare-base", "memtx", "peft-lora-r16"  # `ratio` is memtx over the last
LEARNING_RATE, CLIP_NORM = 5e-4, 1.0


def with_memory(base: nn.Module, model: Model, size: Size) -> nn.Module:
    """Put one bank and its readers into a base."""
    bank = StandardMemoryBank(
        num_memory_tokens=size.num_memory_tokens, dim=size.dim, init=Normal(std=1.0)
    )
    kv_dim = size.dim // size.heads * size.kv_heads

    def linear(out_features: int, init: Normal | Zeros) -> Linear:
        return Linear(in_features=size.dim, out_features=out_features, bias=False, init=init)

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=size.dim, eps=1e-6),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(size.dim, Normal(std=0.02)),
                k_proj=linear(kv_dim, Normal(std=0.02)),
                v_proj=linear(kv_dim, Normal(std=0.02)),
                o_proj=linear(size.dim, Zeros()),
                num_heads=size.heads,
                num_kv_heads=size.kv_heads,
                dropout=0.0,
            ),
        )

    insertions = [
        Insertion(layer=layer, site=model.site, sublayers=[recall()])
        for layer in size.reading_layers
    ]
    return MemoryAdapter(base=base, banks=[bank], insertions=insertions)


def with_lora(base: nn.Module, model: Model) -> nn.Module:
    """Put PEFT's LoRA of rank 16 on a base."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, target_modules=model.lora
    )
    return get_peft_model(base, config)  # type: ignore[arg-type]


def build(variant: str, model: Model, size: Size, device: torch.device) -> nn.Module:
    """Make one variant on a base of its own."""
    base = base_of(model, size, device)
    if variant == MEMORY:
        return with_memory(base, model, size)
    return with_lora(base, model) if variant == LORA else base.requires_grad_(False)


def train(network: Any, size: Size, device: torch.device, clock: Clock) -> None:
    """Tick after each training step, or each loss where nothing is trained."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE) if trained else None
    network.train()
    mixed = size.dtype != torch.float32
    for _ in range(1 + size.warm_up + size.timed):
        ids = torch.randint(2, size.vocab_size, (size.batch, size.length), device=device)
        with (
            torch.set_grad_enabled(bool(trained)),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed),
        ):
            loss = network(input_ids=ids, labels=ids, use_cache=False).loss
        if optimizer is not None:
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        clock.log({})
    if not loss.isfinite():
        raise FloatingPointError(f"the loss must stay finite, got {loss.item()}")


def decode(network: Any, size: Size, device: torch.device, clock: Clock) -> None:
    """Tick after each answer to a prompt; all numbers in the base's dtype."""
    network.to(size.dtype).eval()
    for _ in range(1 + size.warm_up + size.timed):
        ids = torch.randint(2, size.vocab_size, (size.batch, size.prompt), device=device)
        network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=size.new_tokens,
            min_new_tokens=size.new_tokens,
            do_sample=False,
        )
        clock.log({})


JOBS = {"train": train, "decode": decode}


def measure(*, family: str, job: str, size: Size, device: torch.device) -> list[Record]:
    """Time every variant of a family at a job, forth and back, and set memtx over the others."""
    times: dict[str, list[float]] = {BARE: [], MEMORY: [], LORA: []}
    peaks: dict[str, float | None] = {}
    trained: dict[str, int] = {}
    for variant in [*times, *reversed(times)] * size.rounds:
        network = build(variant, MODELS[family], size, device)
        clock = clock_of(device)
        forget_peak(device)
        JOBS[job](network, size, device, clock)
        calls = 1 if job == "train" else size.new_tokens
        times[variant] += [each / calls for each in clock.milliseconds()[size.warm_up :]]
        peaks[variant] = peak_gib(device)
        trained[variant] = sum(p.numel() for p in network.parameters() if p.requires_grad)
        del network
        # A model and its hooks refer to each other: only the collector frees them.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    records: list[Record] = [
        {
            "case": f"{family} {size.name} {job}",
            "variant": variant,
            "milliseconds": statistics.median(each),
            "milliseconds_min": min(each),
            "milliseconds_max": max(each),
            "peak_gib": peaks[variant],
            "trainable_parameters": trained[variant],
        }
        for variant, each in times.items()
    ]
    own = next(record for record in records if record["variant"] == MEMORY)
    own["ratios"] = {
        record["variant"]: own["milliseconds"] / record["milliseconds"]
        for record in records
        if record is not own
    }
    own["ratio"] = own["ratios"][LORA]
    return records


def main() -> int:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description="Time memory, LoRA and bare base by family.")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--families", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    size = SIZES[options.size]
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    records: list[Record] = []
    name = f"{NAME}_{size.name.replace('.', '_')}"
    for family in options.families:
        for job in JOBS:
            found = measure(family=family, job=job, size=size, device=device)
            records += found
            line = "  ".join(f"{each['variant']} {each['milliseconds']:.2f} ms" for each in found)
            print(f"{found[0]['case']:<36}{line}", flush=True)
        # Anew after each family, so that a run that is stopped keeps what it has.
        path = write_records(
            folder=options.output, name=name, device=device, libraries=LIBRARIES, records=records
        )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
