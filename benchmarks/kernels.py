"""What a device does in a while, kernel by kernel, and how fast it multiplies and copies."""

import os
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.clocks import clock_of

# The first whose word is in a kernel's name; what is left is element by element. Names that the
# compiler makes up list what they fuse, so they are looked at for products and attention alone.
PRODUCTS = {
    "attention": ("sdpa", "fmha", "flash", "flex_attention", "dot_do_o", "convert_dq", "attention"),
    "matrix products": (
        *("nvjet", "gemm", "gemv", "cutlass", "splitk", "cublas", "triton_tem", "tem_fused"),
        *("::mm", "::addmm", "::bmm", "::baddbmm", "::_grouped_mm"),
    ),
}
KINDS = {
    **PRODUCTS,
    "loss over logits": ("softmax", "_log_", "nll_loss"),
    "optimizer": ("adam", "multi_tensor", "_foreach"),
    "copies and fills": ("memcpy", "memset", "fill", "copy", "::zero", "::cat", "catarray"),
    "look-ups and sorting": (
        *("index", "gather", "scatter", "embedding", "sort", "topk", "unique", "radix", "scan"),
    ),
}
FUSED = "fused by the compiler"
OTHER = "element by element"


def kind_of(name: str) -> str:
    """Give the kind of a kernel, or on a CPU of an operator, by its name."""
    name = name.lower()
    made_up = name.startswith("triton_")
    kinds = PRODUCTS if made_up else KINDS
    found = (kind for kind, words in kinds.items() if any(word in name for word in words))
    return next(found, FUSED if made_up else OTHER)


def by_kind(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add up the times of kernels by kind, the longest first."""
    found: dict[str, float] = {}
    for name, time in times:
        if time > 0.0:
            found[kind_of(name)] = found.get(kind_of(name), 0.0) + time
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


class Profiler:
    """Sees the kernels from `start` to `stop`; on a CPU the operators, without what they call."""

    def __init__(self, device: torch.device) -> None:
        # A graph that was captured while nobody looked must not lose its kernels, or crash.
        os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
        os.environ.setdefault("TEARDOWN_CUPTI", "0")
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.seen: Any = None

    def start(self) -> None:
        """Wait for what is under way, and look from now on."""
        from torch.profiler import ProfilerActivity, profile

        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        activity = ProfilerActivity.CUDA if self.on_gpu else ProfilerActivity.CPU
        self.seen = profile(activities=[activity])
        self.seen.start()

    def stop(self) -> None:
        """Wait for what is under way, and look no more."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        self.seen.stop()

    def kernels(self, *, each: int) -> dict[str, float]:
        """Give milliseconds by kind of kernel, for each of so many steps."""
        # What only encloses kernels, such as the name of an optimizer's step, is none.
        events = [
            e for e in self.seen.key_averages() if not getattr(e, "is_user_annotation", False)
        ]
        field = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        return by_kind((e.key, getattr(e, field) / 1_000.0 / each) for e in events)


def kernels_of(step: Callable[[], object], *, device: torch.device, count: int) -> dict[str, float]:
    """Give the milliseconds of a step by kind of kernel, over so many steps."""
    profiler = Profiler(device)
    profiler.start()
    for _ in range(count):
        step()
    profiler.stop()
    return profiler.kernels(each=count)


def with_idle(kernels: dict[str, float], milliseconds: float) -> dict[str, float]:
    """Add what is left of a step's time when its kernels are done: the device waits."""
    return {**kernels, "idle": max(0.0, milliseconds - sum(kernels.values()))}


def milliseconds(*, device: torch.device, call: Callable[[], object]) -> float:
    """Time one call, alone on the device."""
    clock = clock_of(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock.log({})
    call()
    clock.log({})
    return clock.milliseconds()[0]


def rate_of_products(device: torch.device) -> float:
    """Give the floating-point operations a millisecond of a large product in bfloat16."""
    size = 8_192 if device.type == "cuda" else 256
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16).unbind()
    times = [milliseconds(device=device, call=lambda: left @ right) for _ in range(10)]
    return 2.0 * size**3 / statistics.median(times)


def rate_of_copies(device: torch.device) -> float:
    """Give the bytes a millisecond that a large copy reads and writes."""
    size = 2**31 if device.type == "cuda" else 2**24
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [milliseconds(device=device, call=lambda: target.copy_(source)) for _ in range(10)]
    return 2.0 * size / statistics.median(times)
