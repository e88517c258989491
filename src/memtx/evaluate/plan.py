"""What a model will take before anything of it is allocated: parameters, bytes, operations."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from memtx.adapters import MemoryAdapter
from memtx.checks import require
from memtx.evaluate.flops import training_flops
from memtx.memory import MemoryCrossAttention, RoutedMemoryCrossAttention
from memtx.memory.router import ChapterRouter
from memtx.tensor import LinearMemoryAttention

# Bytes that an optimizer keeps for a parameter, by the bytes of one of its numbers: two moments
# of its own dtype, one, or two codes with a scale for every 256. bitsandbytes keeps the moments
# of tensors below 4,096 numbers in float32.
SMALL, BLOCK = 4096, 256
OPTIMIZERS = ("AdamW", "Adam", "SGD", "AdamW8bit")


def plan(*, model: nn.Module, batch: int, length: int, optimizer: str) -> dict[str, Any]:
    """Say what a model takes to be trained; nothing is run, so it may be on the meta device.

    Counted are parameters by group (bank, router, memory, LoRA and the rest, trainable or frozen),
    bytes of weights, gradients and optimizer, and the operations of `training_flops`. Activations
    are not: they depend on what is kept and what is computed again.

    Args:
        model: what a factory gave.
        batch: number of rows of a step.
        length: tokens of a row.
        optimizer: one of `OPTIMIZERS`; SGD with momentum.

    Raises:
        ValueError: if a size is below 1, the optimizer is another, or a part is not counted.
    """
    require(
        ok=optimizer in OPTIMIZERS,
        owner="plan",
        rule=f"optimizer must be one of {', '.join(OPTIMIZERS)}",
        got={"optimizer": optimizer},
        remedy="name one of these",
    )
    flops = training_flops(model=model, batch=batch, length=length)
    groups = _groups(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = {
        "weights": _bytes(model),
        "gradients": sum(p.numel() * p.element_size() for p in trained),
        "optimizer": sum(_moments(p, optimizer=optimizer) for p in trained),
    }
    banks = list(_banks(model))
    return {
        "model": type(model).__name__,
        "groups": groups,
        "trainable": sum(group["trainable"] for group in groups.values()),
        "frozen": sum(group["frozen"] for group in groups.values()),
        "bytes": sizes | {"together": sum(sizes.values()), "bank": sum(map(_bytes, banks))},
        "memory_tokens": sum(int(getattr(bank, "num_memory_tokens", 0)) for bank in banks),
        "optimizer": optimizer,
        "batch": batch,
        "length": length,
        "flops_per_token": {
            "forward": sum(flops.forward.values()) / flops.num_tokens,
            "backward": sum(flops.backward.values()) / flops.num_tokens,
            "training": flops.per_token,
        },
        "flops_by_part": {
            name: {"forward": count, "backward": flops.backward[name]}
            for name, count in flops.forward.items()
        },
    }


def _banks(model: nn.Module) -> Iterator[nn.Module]:
    """Give each bank once."""
    seen: set[int] = set()
    for part in model.modules():
        bank = getattr(part, "bank", None)
        if isinstance(bank, nn.Module) and id(bank) not in seen:
            seen.add(id(bank))
            yield bank


def _groups(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters by what they belong to; what is in two belongs to the first."""
    owners: dict[int, str] = {}

    def own(name: str, parts: list[Any]) -> None:
        for part in parts:
            for parameter in part.parameters():
                owners.setdefault(id(parameter), name)

    inside = list(model.modules())
    readers = MemoryCrossAttention | RoutedMemoryCrossAttention | LinearMemoryAttention
    own("bank", list(_banks(model)))
    own("router", [part for part in inside if isinstance(part, ChapterRouter)])
    own("memory", [part.insertions for part in inside if isinstance(part, MemoryAdapter)])
    own("memory", [part for part in inside if isinstance(part, readers)])
    is_adapter = any(isinstance(part, MemoryAdapter) for part in inside)
    rest = "base" if is_adapter or hasattr(model, "peft_config") else "transformer"
    groups = {name: _empty() for name in ("bank", "router", "memory", "lora", rest)}
    for name, parameter in model.named_parameters():
        group = owners.get(id(parameter), "lora" if "lora_" in name else rest)
        groups[group]["tensors"] += 1
        groups[group]["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return {name: group for name, group in groups.items() if group["tensors"]}


def _empty() -> dict[str, int]:
    return {"tensors": 0, "trainable": 0, "frozen": 0}


def _bytes(part: nn.Module) -> int:
    """Count the bytes of parameters and buffers, each once."""
    held = [*part.parameters(), *part.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _moments(parameter: nn.Parameter, *, optimizer: str) -> int:
    numbers, size = parameter.numel(), parameter.element_size()
    if optimizer == "AdamW8bit":
        if numbers < SMALL:
            return 2 * numbers * 4
        return 2 * (numbers + 4 * -(-numbers // BLOCK))
    return numbers * size * (1 if optimizer == "SGD" else 2)
