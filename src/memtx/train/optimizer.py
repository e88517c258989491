"""Optimizers and schedules, as values that are made into torch's when training starts."""

import math
from dataclasses import dataclass
from typing import final

import torch

from memtx.checks import require
from memtx.train.groups import ParameterGroup


@final
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay.

    Args:
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), torch's implementation.

    Example:
        >>> AdamW(betas=(0.9, 0.95), eps=1e-8).eps
        1e-08
    """

    betas: tuple[float, float]
    eps: float

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of some groups.

        Args:
            groups: one torch parameter group is made of each, in order.
        """
        held = [
            {
                "params": group.parameters(),
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ]
        return torch.optim.AdamW(held, betas=self.betas, eps=self.eps)


@final
@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Learning-rate factor: linear from 0 to 1, then a half cosine down to a floor.

    Args:
        warmup_steps: steps of the linear part.
        total_steps: step at which the floor is reached.
        floor: the factor at the end.

    Raises:
        ValueError: if the warm-up is not shorter than the whole, or the floor is outside [0, 1].

    Source: SGDR without restarts (Loshchilov and Hutter 2017, arXiv 1608.03983).

    Example:
        >>> schedule = WarmupCosine(warmup_steps=2, total_steps=4, floor=0.0)
        >>> [round(schedule.factor(step), 3) for step in (1, 2, 3, 4)]
        [0.5, 1.0, 0.5, 0.0]
    """

    warmup_steps: int
    total_steps: int
    floor: float

    def __post_init__(self) -> None:
        require(
            ok=0 <= self.warmup_steps < self.total_steps and 0.0 <= self.floor <= 1.0,
            owner=self,
            rule="0 <= warmup_steps < total_steps and floor in [0, 1] must hold",
            got={
                "warmup_steps": self.warmup_steps,
                "total_steps": self.total_steps,
                "floor": self.floor,
            },
            remedy="choose a shorter warm-up or another floor",
        )

    def factor(self, step: int) -> float:
        """Give the factor of a step.

        Args:
            step: number of the step, from 1.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
