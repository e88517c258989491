"""Batches on their way to the device, with what it would else have to be asked."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtx.context import IGNORED
from memtx.data.protocols import Batch

# What is known of a tensor that was moved, as an attribute of it: gone with whatever replaces it.
_KNOWN = "memtx_known"


def to(tensor: Tensor, device: torch.device) -> Tensor:
    """Give a tensor on a device without waiting for it.

    Args:
        tensor: on the CPU.
        device: where it is wanted.
    """
    held = tensor.pin_memory() if device.type == "cuda" else tensor
    return held.to(device, non_blocking=True)


def move(batch: Batch, device: torch.device) -> Batch:
    """Give a batch on a device without waiting for it, neither now nor in a term that reads it.

    Where labels are, and whether anything is padded, is found on the CPU and known of the tensors.

    Args:
        batch: on the CPU.
        device: where it is wanted.
    """
    moved = {key: to(value, device) for key, value in batch.items()}
    if "labels" in batch:
        _know(moved["labels"], to(_places(batch["labels"]), device))
    if "attention_mask" in batch:
        mask = batch["attention_mask"]
        _know(moved["attention_mask"], count(mask) == mask.numel())
    return moved


def labelled(batch: Batch) -> Tensor:
    """Give the places of a batch, counted row by row, whose next token is a label.

    Args:
        batch: with `labels` `[batch, length]`.
    """
    known = _known(batch["labels"])
    return _places(batch["labels"]) if known is None else known


def unpadded(batch: Batch) -> bool:
    """Tell whether a batch is known to hold no padding; the device is not asked.

    Args:
        batch: with `attention_mask`.
    """
    return bool(_known(batch["attention_mask"]))


def count(marks: Tensor) -> int:
    """Count what is not zero. NumPy does, by one thread: torch's would wait for one another.

    Args:
        marks: numbers or booleans on the CPU.
    """
    return int(np.count_nonzero(marks.cpu().numpy()))


def count_labels(labels: Tensor) -> int:
    """Count the labels that have a token before them.

    Args:
        labels: on the CPU, `[batch, length]`.
    """
    return int(np.count_nonzero(labels.cpu().numpy()[:, 1:] != IGNORED))


def _places(labels: Tensor) -> Tensor:
    if labels.is_cpu:
        marks = np.zeros(labels.shape, dtype=bool)
        marks[:, :-1] = labels.numpy()[:, 1:] != IGNORED
        return torch.from_numpy(np.flatnonzero(marks))
    before = torch.zeros_like(labels, dtype=torch.bool)
    before[:, :-1] = labels[:, 1:] != IGNORED
    return before.flatten().nonzero()[:, 0]


def _know(tensor: Tensor, value: Tensor | bool) -> None:
    setattr(tensor, _KNOWN, (tensor._version, value))


def _known(tensor: Tensor) -> Any:
    """Give what is known of a tensor, unless it was changed since."""
    held = getattr(tensor, _KNOWN, None)
    return held[1] if held is not None and held[0] == tensor._version else None
