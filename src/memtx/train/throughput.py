"""How well a run uses its machine: model FLOPs utilisation and peak memory."""

import math
import re
import sys
from typing import final

import torch

from memtx.checks import require
from memtx.train.loggers import Record
from memtx.train.run import Run

# Dense peaks in FLOP/s by torch's name of the device: float32 without tensor cores, and bfloat16
# or float16 with them. Source: NVIDIA's data sheets, whose figures with sparsity are halved here.
PEAKS: dict[str, tuple[float, float]] = {
    r"NVIDIA H200|NVIDIA H100 80GB HBM3": (67e12, 989.4e12),
    r"NVIDIA H100 PCIe": (51e12, 756e12),
    r"NVIDIA A100-(SXM4|PCIE|PCIe)-\d+GB|NVIDIA A100 80GB PCIe": (19.5e12, 312e12),
    r"NVIDIA L40S": (91.6e12, 362e12),
    r"NVIDIA L4": (30.3e12, 121e12),
}
GIB = 1024**3


def known_peak(*, device_name: str, dtype: torch.dtype) -> float | None:
    """Give the peak FLOP/s of a device, or None where it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name()` writes it.
        dtype: of the matrix products: float32 (without TF32), bfloat16 or float16.

    Source: the table `PEAKS`.
    """
    for name, (single, half) in PEAKS.items():
        if re.fullmatch(name, device_name):
            if dtype in {torch.bfloat16, torch.float16}:
                return half
            return single if dtype == torch.float32 else None
    return None


@final
class Utilisation:
    """Adds `flops_per_second` and `mfu`: model FLOPs per second, and their share of the peak.

    They follow from the record's `tokens_per_second`, so padding is no use of the machine, and
    what activation checkpointing computes twice counts once.

    Args:
        flops_per_token: of a training step, as `training_flops(...).per_token` counts them.
        peak_flops: of one device, in FLOP/s: stated, or `known_peak(...)`; None where it is not
            known, and then there is no `mfu`.

    Raises:
        ValueError: if a number is not positive and finite.

    Source: model FLOPs utilisation of PaLM (arXiv 2204.02311, appendix B).

    Example:
        >>> record = {"step": 1, "tokens_per_second": 1e5}
        >>> Utilisation(flops_per_token=2e9, peak_flops=989.4e12).rate(record, world_size=1)
        >>> round(record["mfu"], 3)
        0.202
    """

    def __init__(self, *, flops_per_token: float, peak_flops: float | None) -> None:
        values = {"flops_per_token": flops_per_token, "peak_flops": peak_flops}
        for name, value in values.items():
            require(
                ok=value is None or (math.isfinite(value) and value > 0.0),
                owner=self,
                rule=f"{name} must be positive and finite",
                got={name: value},
                remedy="count it by training_flops, or read it in the device's data sheet",
            )
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops

    def rate(self, record: Record, *, world_size: int) -> None:
        """Add the rates to a record.

        Args:
            record: with `tokens_per_second`, of all processes.
            world_size: number of processes, each with a device.
        """
        record["flops_per_second"] = self.flops_per_token * record["tokens_per_second"]
        if self.peak_flops is not None:
            record["mfu"] = record["flops_per_second"] / (self.peak_flops * world_size)

    def after_step(self, run: Run, record: Record) -> None:
        """Add the rates of a step to its record.

        Args:
            run: the run.
            record: of the step.
        """
        self.rate(record, world_size=run.parallelism.world_size)

    def is_urgent(self, step: int) -> bool:
        """Tell that it can be told of any step later.

        Args:
            step: not used.
        """
        return False

    def state_dict(self) -> dict[str, object]:
        """Give nothing: each step is measured by itself."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take nothing.

        Args:
            state: empty.
        """


@final
class PeakMemory:
    """Adds `peak_memory_gib`: of this process's GPU in this step, or of the process on a CPU.

    On a GPU it is the most that tensors held since the step before; without one the most that
    was resident since the process began. It waits for nothing.

    Source: `torch.cuda.max_memory_allocated`; the operating system's count of resident pages.

    Example:
        >>> resident_gib() > 0.0
        True
    """

    def after_step(self, run: Run, record: Record) -> None:
        """Add the peak of a step to its record.

        Args:
            run: the run.
            record: of the step.
        """
        device = run.parallelism.device
        if device.type == "cuda":
            record["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / GIB
            torch.cuda.reset_peak_memory_stats(device)
        else:
            record["peak_memory_gib"] = resident_gib()

    def is_urgent(self, step: int) -> bool:
        """Tell that it can be told of any step later.

        Args:
            step: not used.
        """
        return False

    def state_dict(self) -> dict[str, object]:
        """Give nothing: each step is measured by itself."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take nothing.

        Args:
            state: empty.
        """


def resident_gib() -> float:
    """Give the most memory that was resident in this process, in GiB."""
    import resource  # on Unix alone

    # In KiB, but on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
