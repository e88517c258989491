"""Losses that keep a router in balance."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from memtx.checks import require
from memtx.context import Context
from memtx.expression import component
from memtx.memory.router import ChapterRouter, Routing


def _check_weight(loss: Any) -> None:
    require(
        ok=math.isfinite(loss.weight) and loss.weight >= 0.0,
        owner=loss,
        rule="weight must be finite and not negative",
        got={"weight": loss.weight},
        remedy="pass 0.0 to only measure the loss",
    )


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class LoadBalanceLoss:
    """`C sum_i f_i P_i`: 1 when all chapters are chosen alike, `C / top_k` when always the same.

    `f_i` is the fraction of selections that went to routed chapter `i`, `P_i` its mean probability,
    `C` the number of routed chapters. The gradient goes through `P`.

    Args:
        weight: its factor in the loss of the model.

    Raises:
        ValueError: if `weight` is negative or not finite.

    Source: Fedus et al. 2021 (Switch Transformers, arXiv 2101.03961), equation 4.

    Example:
        >>> LoadBalanceLoss(weight=0.01)
        LoadBalanceLoss(weight=0.01)
    """

    weight: float

    def __post_init__(self) -> None:
        _check_weight(self)

    def __call__(self, routing: Routing, reduce: bool) -> Tensor:
        """Give the loss, without its weight.

        Args:
            routing: what the router chose.
            reduce: whether to take `f` and `P` over all processes.
        """
        selections = routing.selections()
        fraction = _mean(selections, count=selections.sum(), reduce=reduce)
        return fraction.shape[0] * (fraction * _mean_probability(routing, reduce=reduce)).sum()


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class ChapterVarianceLoss:
    """`C sum_i (P_i - 1/C)^2`: 0 when the mean probabilities are equal.

    Args:
        weight: its factor in the loss of the model.

    Raises:
        ValueError: if `weight` is negative or not finite.

    Source: the auxiliary loss of the mixture-of-chapters source.

    Example:
        >>> ChapterVarianceLoss(weight=0.01)
        ChapterVarianceLoss(weight=0.01)
    """

    weight: float

    def __post_init__(self) -> None:
        _check_weight(self)

    def __call__(self, routing: Routing, reduce: bool) -> Tensor:
        """Give the loss, without its weight.

        Args:
            routing: what the router chose.
            reduce: whether to take `P` over all processes.
        """
        probability = _mean_probability(routing, reduce=reduce)
        chapters = probability.shape[0]
        return chapters * (probability - 1.0 / chapters).square().sum()


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class RouterZLoss:
    """`mean(logsumexp(logits)^2)`: keeps the scores small, so that their softmax stays exact.

    Args:
        weight: its factor in the loss of the model.

    Raises:
        ValueError: if `weight` is negative or not finite.

    Source: Zoph et al. 2022 (ST-MoE, arXiv 2202.08906), equation 5.

    Example:
        >>> RouterZLoss(weight=0.001)
        RouterZLoss(weight=0.001)
    """

    weight: float

    def __post_init__(self) -> None:
        _check_weight(self)

    def __call__(self, routing: Routing, reduce: bool) -> Tensor:
        """Give the loss, without its weight.

        Args:
            routing: what the router chose.
            reduce: whether to take the mean over all processes.
        """
        squares = torch.logsumexp(routing.logits, dim=-1).square()
        total = routing.sum_over_decisions(squares)
        return _mean(total, count=routing.decisions(), reduce=reduce)


def _mean_probability(routing: Routing, *, reduce: bool) -> Tensor:
    total = routing.sum_over_decisions(torch.softmax(routing.logits, dim=-1))
    return _mean(total, count=routing.decisions(), reduce=reduce)


def _mean(total: Tensor, *, count: Tensor, reduce: bool) -> Tensor:
    """Give `total / count`, both summed over all processes if `reduce`.

    The gradient is then as many times this process's share as there are processes, for a wrapper
    that averages the gradients of all: together they give that of the mean.
    """
    if not (reduce and dist.is_available() and dist.is_initialized()):
        return total / count.clamp(min=1)
    sums = torch.cat([total.detach().reshape(-1), count.reshape(-1)])
    dist.all_reduce(sums)
    whole, counts = sums[:-1].view_as(total), sums[-1].clamp(min=1)
    return (whole + dist.get_world_size() * (total - total.detach())) / counts


def router_losses(context: Context) -> dict[str, tuple[Tensor, float]]:
    """Give the losses of all routers of a forward by name, each with its weight.

    Losses of one class and weight are summed over the routers. In training under several processes
    the statistics are those of the batches of all of them, so each must call this equally often.

    Args:
        context: of the forward, after it.
    """
    found: dict[str, tuple[Tensor, float]] = {}
    for router, routing in context.routings:
        reduce = router.training and torch.is_grad_enabled()
        for loss in router.losses:
            name, value = _name(loss), loss(routing, reduce)
            before = found[name][0] if name in found else torch.zeros_like(value)
            found[name] = (before + value, loss.weight)
    return found


def router_loss_weights(model: nn.Module) -> dict[str, float]:
    """Give the names of the router losses of a model, as `router_losses` names them, with weights.

    Args:
        model: the model.
    """
    # Asked in every step, and `modules()` takes three times as long.
    found: list[ChapterRouter] = []
    left: list[nn.Module | None] = [model]
    seen: set[nn.Module | None] = {None}
    while left:
        part = left.pop()
        if part in seen:
            continue
        seen.add(part)
        if isinstance(part, ChapterRouter):
            found.append(part)
        elif part is not None:
            left.extend(reversed(part._modules.values()))
    return {_name(loss): loss.weight for router in found for loss in router.losses}


def _name(loss: Any) -> str:
    """Name a loss by its class and weight: routers may weigh the same loss differently."""
    return f"{type(loss).__name__}({loss.weight})"
