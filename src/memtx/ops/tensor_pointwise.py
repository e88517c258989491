"""What tensor memory does to rows and pairs of tokens between its products.

Each function goes over large tensors a few times; `joined` makes it one or two kernels on a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memtx.ops.fused import fused

# Numbers from which compiling a function pays.
LARGE = 1 << 23


def joined(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """Give one of the functions below, compiled where its tensors are large and on a GPU.

    Args:
        function: the function.
        like: the largest of its tensors.
    """
    return fused(function, device=like.device) if like.numel() >= LARGE else function


def features_in_place(x: Tensor) -> Tensor:
    """Give `ELU(x) + 1` as `exp(min(x, 0)) + max(x, 0)`, which keeps small values exact.

    Args:
        x: overwritten.
    """
    above = x.clamp(min=0)
    return x.clamp_(max=0).exp_().add_(above)


def to_tokens(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Put `[batch, heads, chunks, chunk, dim]` together to `[batch, tokens, heads, dim]`.

    Args:
        x: what to put together.
        dtype: of the copy.
    """
    ordered = x.permute(0, 2, 3, 1, 4)
    return ordered.to(dtype, memory_format=torch.contiguous_format, copy=True).flatten(1, 2)


def divided_to_tokens(above: Tensor, below: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide what is read by its denominators, and put the chunks together.

    Args:
        above: `[batch, heads, chunks, chunk, dim]`; overwritten.
        below: without the last axis.
        dtype: of the copy.
    """
    return to_tokens(above.div_(below[..., None]), dtype)


def divided_backward(
    gradient: Tensor, result: Tensor, below: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Give the gradients of denominators and numerators.

    Args:
        gradient: of what was read.
        result: what was read.
        below: the denominators.
        dtype: of the gradient of the numerators.
    """
    d_above = (gradient.to(below.dtype) / below[..., None]).to(dtype)
    # Of the rounded one, as the products it is set against: what is left of both may be little.
    return (d_above.to(below.dtype) * result).sum(dim=-1).neg_(), d_above


def features_backward(d_features: Tensor, features: Tensor, dtype: torch.dtype) -> Tensor:
    """Give the gradient of what features were made of, with the chunks put together.

    Args:
        d_features: gradient of the features; overwritten.
        features: these, which are their own derivative below 1 and have the derivative 1 above.
        dtype: of the copy.
    """
    return to_tokens(d_features.mul_(features.clamp(max=1)), dtype)


def masked(pairs: Tensor, weights: Tensor | None) -> Tensor:
    """Leave of the products of all pairs what a token reads.

    Args:
        pairs: `[batch, heads, chunks, chunk, chunk]`; overwritten.
        weights: of the pairs; None, all earlier tokens count whole.
    """
    return pairs.tril_(-1) if weights is None else pairs.mul_(weights.to(pairs.dtype))


def masked_sum(pairs: Tensor, added: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add to each row of pairs a number, and leave what a token reads.

    Args:
        pairs: `[batch, heads, chunks, chunk, chunk]`; overwritten.
        added: without the last axis.
        weights: as in `masked`.
        dtype: of what comes out.
    """
    return masked(pairs.add_(added[..., None]), weights).to(dtype)


def shares(
    pairs: Tensor,
    before: Tensor,
    weights: Tensor | None,
    delta: Tensor,
    left: Tensor | None,
    eps: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give `c`, the share of what its key reads that a token takes back, and `c L`.

    Args:
        pairs: products of the keys' features, `[batch, heads, chunks, chunk, chunk]`; overwritten.
        before: what each key reads of the normaliser before its chunk.
        weights: as in `masked`.
        delta: 1 where a head has the delta rule, `[heads, 1, 1]`.
        left: decay of each head; None where none decays.
        eps: added to the denominators.
    """
    pairs = masked(pairs, weights)
    read = pairs.sum(dim=-1) + before
    share = delta / (read + eps) if left is None else delta * left / (left * read + eps)
    return share, pairs.mul_(share[..., None])


def taken_backward(
    d_value: Tensor, value: Tensor, written: Tensor, share: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Give the gradients of the keys' denominators and of what the keys read.

    Args:
        d_value: gradient of the values.
        value: the values.
        written: what was written in their place.
        share: as `shares` gives it.
        dtype: of the gradient of what is read.
    """
    taken = (d_value * share.neg()[..., None]).to(dtype)
    # v - u is what was taken back: the numerator over the denominator whose gradient this is.
    return (taken.to(share.dtype) * (value - written)).sum(dim=-1).neg_(), taken
