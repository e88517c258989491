"""Reading chosen chapters of a memory: each segment of tokens reads its own few.

Shapes, beside those of a dense read: `chapters` is the axis of the chapters whose keys and values
are given (those that some segment reads), `tokens` that of the memory tokens of a chapter, `chosen`
that of the chapters a segment reads. `choice` names them by their place on `chapters`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from memtx.ops.chapter_attention import chapter_attention
from memtx.ops.fused import fused
from memtx.ops.page_read import page_read, reads_pages
from memtx.ops.segments import Segments
from memtx.ops.sorted_read import independent_sorted_read, joint_sorted_read, sorts

# Widths of heads that fused attention takes come in steps of this.
_WIDTH_STEP = 8


def joint_read_reference(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"],
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
) -> Float[Tensor, "batch length heads width"]:
    """Read by one softmax over all chosen chapters, each score raised by `log_weight`.

    The definition: it goes token by token and chapter by chapter.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        value: their values. Head `h` of the query reads head `h // (heads / kv_heads)`.
        choice: which chapters each segment reads.
        log_weight: logarithms of their weights.
        segments: which segment each token belongs to. Padding reads zero.
    """

    def read(token: Tensor, chapters: Tensor, weights: Tensor) -> Tensor:
        scores, values = [], []
        for chapter, weight in zip(chapters.tolist(), weights, strict=True):
            keys = _for_heads(key[chapter], heads=token.shape[0])
            values.append(_for_heads(value[chapter], heads=token.shape[0]))
            scores.append(_scores(token, keys) + weight.to(token.dtype))
        attention = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
        return torch.einsum("ht,thw->hw", attention, torch.cat(values))

    return _each_token(read, query=query, choice=choice, weight=log_weight, segments=segments)


def independent_read_reference(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"],
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
) -> Float[Tensor, "batch length heads width"]:
    """Read each chosen chapter by a softmax of its own and add the reads up by weight.

    The definition: it goes token by token and chapter by chapter.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        value: their values. Head `h` of the query reads head `h // (heads / kv_heads)`.
        choice: which chapters each segment reads.
        log_weight: logarithms of their weights.
        segments: which segment each token belongs to. Padding reads zero.
    """

    def read(token: Tensor, chapters: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(token)
        for chapter, weight in zip(chapters.tolist(), weights, strict=True):
            keys = _for_heads(key[chapter], heads=token.shape[0])
            values = _for_heads(value[chapter], heads=token.shape[0])
            attention = torch.softmax(_scores(token, keys), dim=-1)
            each = torch.einsum("ht,thw->hw", attention, values)
            total = total + weight.exp().to(token.dtype) * each
        return total

    return _each_token(read, query=query, choice=choice, weight=log_weight, segments=segments)


def _for_heads(x: Tensor, *, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _scores(token: Tensor, keys: Tensor) -> Tensor:
    scores: Tensor = torch.einsum("hw,thw->ht", token, keys)
    return scores / math.sqrt(token.shape[-1])


def _each_token(
    read: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    query: Tensor,
    choice: Tensor,
    weight: Tensor,
    segments: Segments,
) -> Tensor:
    rows = []
    for row in range(query.shape[0]):
        tokens = []
        for at in range(query.shape[1]):
            number = int(segments.segment[row, at])
            real = bool(segments.real[row, at])
            token = query[row, at]
            chosen, weights = choice[row, number], weight[row, number]
            tokens.append(read(token, chosen, weights) if real else torch.zeros_like(token))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def joint_read(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"] | None,
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
    dropout: float,
) -> Float[Tensor, "batch length heads width"]:
    """Read by one fused attention, each segment over its own chapters laid side by side.

    The weight of a chapter enters the scores as a further feature, 1 in the query and the weight in
    the keys: a bias of the scores that needs a gradient has no fused kernel. In a narrow dtype the
    weight is carried by two features, its rounded value and the rest, and so exactly.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        value: their values.
        choice: which chapters each segment reads; None if they stand in the order of the choices,
            one for each.
        log_weight: logarithms of their weights, in float32.
        segments: which segment each token belongs to. Padding reads zero.
        dropout: probability of dropping an attention weight.
    """
    named = _named(choice, log_weight)
    if sorts(named, key, segments, dropout):
        return joint_sorted_read(query, key, value, named, log_weight, segments)
    if choice is not None and dropout == 0.0 and reads_pages(query, key, log_weight, segments):
        return segments.join(
            page_read(segments.split(query)[:, :, 0], key, value, choice, log_weight)[:, :, None]
        )
    batch, _, heads, width = query.shape
    kv_heads = key.shape[2]
    q, k, v = fused(_weighted, device=query.device)(
        *(segments.split(query), key, value, choice, log_weight, _takes_narrow_values(query))
    )
    read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=width**-0.5)
    shape = (batch, segments.count, kv_heads, heads // kv_heads, segments.width, width)
    return segments.join(_unfold(read[..., :width], shape=shape))


def _named(choice: Tensor | None, log_weight: Tensor) -> Tensor:
    """Name the chapters by their places where nobody did."""
    if choice is not None:
        return choice
    return torch.arange(log_weight.numel(), device=log_weight.device).view_as(log_weight)


def _takes_narrow_values(query: Tensor) -> bool:
    """Tell whether a fused kernel takes values narrower than keys: cuDNN's does, on Hopper."""
    half = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % _WIDTH_STEP == 0
    return half and query.is_cuda and torch.cuda.get_device_capability(query.device)[0] == 9


def _weighted(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    choice: Tensor | None,
    log_weight: Tensor,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out query, keys and values with the weights of the chapters as features.

    `narrow` leaves the values without features.
    """
    width = query.shape[-1]
    tokens, kv_heads = key.shape[1:3]
    bias = (log_weight * width**0.5).repeat_interleave(tokens, dim=-1)
    rounded = bias.to(query.dtype)
    rest = (bias - rounded.float()).to(query.dtype)
    features = torch.stack([rounded, rest], dim=-1).flatten(0, 1)[:, None]
    missing = -(width + 2) % _WIDTH_STEP
    shape = (features.shape[0], log_weight.shape[-1])
    values, laid = _laid(value, choice, shape=shape), _laid(key, choice, shape=shape)
    keys = torch.cat([laid, features.expand(-1, kv_heads, -1, -1)], dim=-1)
    return (
        F.pad(F.pad(_fold(query, kv_heads=kv_heads), (0, 2), value=1.0), (0, missing)),
        F.pad(keys, (0, missing)),
        values if narrow else F.pad(values, (0, 2 + missing)),
    )


def _side_by_side(
    query: Tensor, key: Tensor, value: Tensor, choice: Tensor | None, chosen: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out query, keys and values, ready for many matrix products."""
    folded = _fold(query, kv_heads=key.shape[2])
    shape = (query.shape[0] * query.shape[1], chosen)
    key, value = (_laid(each, choice, shape=shape).contiguous() for each in (key, value))
    return folded, key, value


def independent_read(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"] | None,
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
    dropout: float,
) -> Float[Tensor, "batch length heads width"]:
    """Read by matrix products, each segment over its own chapters laid side by side.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        value: their values.
        choice: which chapters each segment reads; None if they stand in the order of the choices,
            one for each.
        log_weight: logarithms of their weights, in float32.
        segments: which segment each token belongs to. Padding reads zero.
        dropout: probability of dropping an attention weight.
    """
    named = _named(choice, log_weight)
    if sorts(named, key, segments, dropout):
        return independent_sorted_read(query, key, value, named, log_weight, segments)
    batch, _, heads, width = query.shape
    kv_heads = key.shape[2]
    q, k, v = fused(_side_by_side, device=query.device)(
        segments.split(query), key, value, choice, log_weight.shape[-1]
    )
    read = chapter_attention(q, k, v, log_weight.flatten(0, 1), dropout)
    shape = (batch, segments.count, kv_heads, heads // kv_heads, segments.width, width)
    return segments.join(_unfold(read, shape=shape))


def _fold(x: Tensor, *, kv_heads: int) -> Tensor:
    """Fold the query heads of a group into the query axis, where they share keys and values.

    `[batch, segments, places, heads, width]` to
    `[batch segments, kv_heads, group places, width]`.
    """
    batch, count, places, heads, width = x.shape
    grouped = x.view(batch, count, places, kv_heads, heads // kv_heads, width)
    return grouped.permute(0, 1, 3, 4, 2, 5).reshape(batch * count, kv_heads, -1, width)


def _unfold(x: Tensor, *, shape: tuple[int, int, int, int, int, int]) -> Tensor:
    """Undo `_fold`: `[batch, segments, places, heads, width]`."""
    return x.reshape(shape).permute(0, 1, 4, 2, 3, 5).flatten(3, 4)


def _laid(x: Tensor, choice: Tensor | None, *, shape: tuple[int, int]) -> Tensor:
    """Lay the chosen chapters of each segment side by side, `[segments, heads, tokens, width]`.

    `shape` is how many segments there are, and chapters that each of them reads.
    """
    chosen = x.unflatten(0, shape) if choice is None else x[choice.flatten(0, 1)]
    return chosen.flatten(1, 2).transpose(1, 2)
