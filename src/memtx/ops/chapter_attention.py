"""Attention whose softmax runs over each chapter by itself: `sum_i w_i softmax(q K_i^T) V_i`."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from memtx.ops.fused import fused, outcome

# Scores held at a time: enough to keep a GPU busy, little beside keys and values.
_SCORES = 2**27


def chapter_attention(
    query: Float[Tensor, "segments heads places width"],
    key: Float[Tensor, "segments heads memory width"],
    value: Float[Tensor, "segments heads memory width"],
    log_weight: Float[Tensor, "segments chosen"],
    dropout: float,
) -> Float[Tensor, "segments heads places width"]:
    """Attend to chapters that lie side by side, each with a softmax and a weight of its own.

    Fused attention has no softmax in parts, and reading each chapter by one gives as many copies of
    the output as chapters. Here scores are made by matrix products for a few segments at a time and
    made again in the backward pass, so that neither they nor copies are kept.

    Args:
        query: the queries of each segment.
        key: the keys of its chapters, one after another.
        value: their values.
        log_weight: logarithms of the chapters' weights, in float32.
        dropout: probability of dropping an attention weight.
    """
    if dropout > 0.0:
        scores = _by_chapter(query @ key.transpose(-1, -2), log_weight)
        attention = _probabilities(scores, log_weight, query.shape[-1]).flatten(-2)
        return F.dropout(attention, dropout) @ value
    read: Any = _ChapterAttention.apply
    return cast("Tensor", read(query, key, value, log_weight))


def _probabilities(scores: Tensor, log_weight: Tensor, width: int) -> Tensor:
    """Give the weighted softmax of each chapter, in the dtype of the scores.

    `scores` is `[segments, heads, places, chosen, tokens]`: with an axis of its own, the softmax
    and what follows become one kernel.
    """
    share = torch.softmax(scores.float() * width**-0.5, dim=-1)
    return (share * log_weight.exp()[:, None, None, :, None]).to(scores.dtype)


def _gradients(
    scores: Tensor, given: Tensor, log_weight: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the probabilities, and the gradients of scores and log weights.

    `given` is the gradient of the probabilities; both are laid out as above.
    """
    weight = log_weight.exp()[:, None, None, :, None]
    share = torch.softmax(scores.float() * width**-0.5, dim=-1)
    wanted = given.float()
    mean = (share * wanted).sum(dim=-1, keepdim=True)
    weighted = weight * share
    of_scores = (weighted * (wanted - mean) * width**-0.5).to(scores.dtype)
    of_weight = (weight * mean).sum(dim=(1, 2, 4))
    return weighted.to(scores.dtype), of_scores, of_weight


def _by_chapter(scores: Tensor, log_weight: Tensor) -> Tensor:
    return torch.unflatten(scores, -1, (log_weight.shape[-1], -1))


def _product(one: Tensor, other: Tensor, *, into: Tensor) -> None:
    """Multiply the matrices of each segment and head into where they belong, without a copy."""
    torch.bmm(one.flatten(0, 1), other.flatten(0, 1), out=into.flatten(0, 1))


def _slices(query: Tensor, key: Tensor) -> list[slice]:
    """Cut the segments so that the scores of a piece are few."""
    each = query.shape[1] * query.shape[2] * key.shape[2]
    step = max(1, _SCORES // each)
    return [slice(start, start + step) for start in range(0, query.shape[0], step)]


class _ChapterAttention(torch.autograd.Function):
    """The attention above without dropout."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value, log_weight)
        probabilities = fused(_probabilities, device=query.device)
        out = query.new_empty(query.shape)
        for part in _slices(query, key):
            scores = _by_chapter(query[part] @ key[part].transpose(-1, -2), log_weight)
            attention = probabilities(scores, log_weight[part], query.shape[-1])
            _product(attention.flatten(-2), value[part], into=out[part])
        return outcome(out)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        given = outputs[0].contiguous()
        query, key, value, log_weight = ctx.saved_tensors
        gradients = fused(_gradients, device=query.device)
        of_query, of_key = query.new_empty(query.shape), key.new_empty(key.shape)
        of_value, of_weight = value.new_empty(value.shape), torch.empty_like(log_weight)
        for part in _slices(query, key):
            scores = _by_chapter(query[part] @ key[part].transpose(-1, -2), log_weight)
            of_attention = _by_chapter(given[part] @ value[part].transpose(-1, -2), log_weight)
            attention, of_scores, of_weight[part] = gradients(
                scores, of_attention, log_weight[part], query.shape[-1]
            )
            attention, of_scores = attention.flatten(-2), of_scores.flatten(-2)
            _product(of_scores, key[part], into=of_query[part])
            _product(of_scores.mT, query[part], into=of_key[part])
            _product(attention.mT, given[part], into=of_value[part])
        return of_query, of_key, of_value, of_weight
