"""Reading chosen chapters where every token chooses its own: its pairs are sorted by chapter.

Shapes are those of `routed_read`. Laying the chapters of each token side by side would copy as many
chapters as there are pairs of a token and a chapter; sorted, the tokens that read a chapter stand
together, and each chapter is read where it lies.
"""

from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memtx.ops.fused import fused, outcome
from memtx.ops.pair_attention import pair_attention, pair_attention_backward
from memtx.ops.segments import Segments

# Elements of keys that would be copied side by side: with fewer that is faster than sorting.
MANY_COPIED = 2**27
MANY_COPIED_ON_CPU = 2**21


def sorts(choice: Tensor, key: Tensor, segments: Segments, dropout: float) -> bool:
    """Tell whether sorting is the way to read: many tokens, each with chapters of its own.

    Decoding has one token to a row, and stays away from what the host must wait for.

    Args:
        choice: which chapters each segment reads.
        key: the keys of the chapters.
        segments: which segment each token belongs to.
        dropout: probability of dropping an attention weight, which a sorted read has not.
    """
    if segments.width > 1 or segments.count == 1 or dropout > 0.0:
        return False
    many = MANY_COPIED if key.is_cuda else MANY_COPIED_ON_CPU
    return choice.numel() * key[0].numel() >= many


def joint_sorted_read(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"],
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
) -> Float[Tensor, "batch length heads width"]:
    """Read by one softmax over all chosen chapters, each score raised by `log_weight`.

    Each chapter is read by itself, and the reads of a token are added up by the shares of their
    chapters in the one softmax: those of `log_weight` plus the logarithm of a read's denominator.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        value: their values.
        choice: which chapters each token reads.
        log_weight: logarithms of their weights, in float32.
        segments: segments of one token each. Padding reads zero.
    """
    return _read(_JointRead, query, key, value, choice, log_weight, segments)


def independent_sorted_read(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"],
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
) -> Float[Tensor, "batch length heads width"]:
    """Read each chosen chapter by a softmax of its own and add the reads up by weight.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        value: their values.
        choice: which chapters each token reads.
        log_weight: logarithms of their weights, in float32.
        segments: segments of one token each. Padding reads zero.
    """
    return _read(_IndependentRead, query, key, value, choice, log_weight, segments)


def _read(
    function: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    choice: Tensor,
    log_weight: Tensor,
    segments: Segments,
) -> Tensor:
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    laid = segments.split(query)
    order = _order(choice.flatten(0, 1), chapters=key.shape[0])
    read = function.apply(laid.flatten(0, 2), key, value, log_weight.flatten(0, 1), *order)
    return segments.join(cast("Tensor", read).view_as(laid))


class _Order(NamedTuple):
    """Pairs of a token and a chapter by chapter.

    Args:
        pair: the pair at each place, counted token by token, `[pairs]`.
        place: the place of each pair, `[tokens, chosen]`.
        starts: where the pairs of each chapter start, and the end, `[chapters + 1]`.
    """

    pair: Tensor
    place: Tensor
    starts: Tensor


def _order(choice: Tensor, *, chapters: int) -> _Order:
    # Few digits sort faster.
    chapter, pair = choice.flatten().int().sort(stable=True)
    here = torch.arange(pair.shape[0], device=pair.device)
    place = torch.empty_like(pair).scatter_(0, pair, here)
    bounds = torch.arange(chapters + 1, dtype=torch.int32, device=pair.device)
    starts = torch.searchsorted(chapter, bounds, out_int32=True)
    return _Order(pair=pair, place=place.view_as(choice), starts=starts)


def _merged(
    read: Tensor, total: Tensor, log_weight: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the joint read of each token, and the logarithms of its denominators."""
    parts = total.T[place] + log_weight[..., None]
    totals = parts.logsumexp(dim=1, keepdim=True)
    share = (parts - totals).exp()[..., None]
    return (share * read[place].float()).sum(dim=1).to(read.dtype), totals[:, 0].T


def _added(read: Tensor, log_weight: Tensor, place: Tensor) -> Tensor:
    """Give the sum of each token's reads by weight."""
    weight = log_weight.exp()[..., None, None]
    return (weight * read[place].float()).sum(dim=1).to(read.dtype)


def _of_pairs(
    given: Tensor,
    out: Tensor,
    totals: Tensor,
    read: Tensor,
    total: Tensor,
    log_weight: Tensor,
    pair: Tensor,
    place: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give, of each pair, gradient, read and denominator in the joint softmax; and of the weights.

    The weight of a chapter divides the denominator.
    """
    token = pair // log_weight.shape[1]
    given, out = given[token], out[token]
    raised = totals[:, token] - log_weight.flatten()[pair]
    gain = (given.float() * read.float()).sum(dim=-1)[place]
    share = (total - raised).T[place].exp()
    # Taken from the mean of the same reads, so that rounding moves no weight as a whole.
    of_weight = (share * (gain - (share * gain).sum(dim=1, keepdim=True))).sum(dim=-1)
    return given, out, raised, of_weight


def _of_reads(
    given: Tensor, read: Tensor, total: Tensor, log_weight: Tensor, pair: Tensor, place: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give, of each pair, gradient and denominator divided by its weight; and of the weights."""
    given = given[pair // log_weight.shape[1]]
    gain = (given.float() * read.float()).sum(dim=(-2, -1))[place]
    return given, total - log_weight.flatten()[pair], gain * log_weight.exp()


def _of_tokens(x: Tensor, place: Tensor) -> Tensor:
    """Add up the gradients of a token's pairs."""
    return x[place].float().sum(dim=1).to(x.dtype)


@final
class _JointRead(torch.autograd.Function):
    """The backward pass gives every pair what its token read in all, as in ring attention."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_weight: Tensor,
        pair: Tensor,
        place: Tensor,
        starts: Tensor,
    ) -> Tensor:
        sorted_query = query.index_select(0, pair // place.shape[1])
        read, total, longest = pair_attention(sorted_query, key, value, starts)
        out, totals = fused(_merged, device=query.device)(read, total, log_weight, place)
        ctx.save_for_backward(
            *(query, key, value, log_weight, pair, place, starts),
            *(out, totals, read, total, longest),
        )
        return outcome(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, log_weight, pair, place, starts, *kept = ctx.saved_tensors
        out, totals, read, total, longest = kept
        given, out, raised, of_weight = fused(_of_pairs, device=query.device)(
            gradients[0], out, totals, read, total, log_weight, pair, place
        )
        sorted_query = query.index_select(0, pair // place.shape[1])
        of_query, of_key, of_value = pair_attention_backward(
            given, sorted_query, key, value, out, raised, starts, longest
        )
        of_query = fused(_of_tokens, device=query.device)(of_query, place)
        return of_query, of_key, of_value, of_weight, None, None, None


@final
class _IndependentRead(torch.autograd.Function):
    """Keeps the reads of all pairs: a few of a token, where a segment has many."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_weight: Tensor,
        pair: Tensor,
        place: Tensor,
        starts: Tensor,
    ) -> Tensor:
        sorted_query = query.index_select(0, pair // place.shape[1])
        read, total, longest = pair_attention(sorted_query, key, value, starts)
        ctx.save_for_backward(
            *(query, key, value, log_weight, pair, place, starts),
            *(read, total, longest),
        )
        return outcome(fused(_added, device=query.device)(read, log_weight, place))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, log_weight, pair, place, starts, *kept = ctx.saved_tensors
        read, total, longest = kept
        given, raised, of_weight = fused(_of_reads, device=query.device)(
            gradients[0], read, total, log_weight, pair, place
        )
        sorted_query = query.index_select(0, pair // place.shape[1])
        of_query, of_key, of_value = pair_attention_backward(
            given, sorted_query, key, value, read, raised, starts, longest
        )
        of_query = fused(_of_tokens, device=query.device)(of_query, place)
        return of_query, of_key, of_value, of_weight, None, None, None
