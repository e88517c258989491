"""How a sequence is cut into chunks, and what decay, padding and documents leave of each product.

In this file and in `tensor_chunks`, tensors of tokens are `[batch, heads, chunks, chunk, dim]`;
an axis on which nothing depends has size 1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """What is left of one token at another, within chunks and from chunk to chunk.

    `pair` `[.., chunk, chunk]` weighs what token `j` wrote where token `t` reads, zero from the
    diagonal on; None, all earlier tokens count whole. `carry` `[.., chunk]` weighs the state before
    the chunk where token `t` reads, `keep` what token `j` wrote in the state behind the chunk, and
    `whole` `[.., chunks]` the state before the chunk in that behind it; None is 1. `counts`, `runs`
    and `rate` are the arguments of `decayed_sums`.
    """

    pair: Tensor | None
    carry: Tensor | None
    keep: Tensor | None
    whole: Tensor | None
    counts: Tensor | None
    runs: Tensor | None
    rate: Tensor | None


def document_runs(document: Tensor, real: Tensor | None) -> Tensor:
    """Number the documents of each row from 0 in order; padding belongs to the one before it.

    Args:
        document: a number that all tokens of a document share, `[batch, length]`.
        real: whether a token stands there, `[batch, length]`; None, everywhere.
    """
    if real is None:
        real = torch.ones_like(document, dtype=torch.bool)
    at = torch.arange(real.shape[1], device=real.device).expand_as(real)
    last = torch.where(real, at, -1).cummax(dim=1).values
    before = F.pad(last[:, :-1], (1, 0), value=-1)
    changed = document != document.gather(1, before.clamp(min=0))
    return (changed & real & (before >= 0)).long().cumsum(dim=1)


def to_chunks(parts: list[Tensor], chunk: int, dtype: torch.dtype) -> Tensor:
    """Cut each `[batch, length, heads, dim]` into `[batch, heads, chunks, chunk, dim]`.

    Args:
        parts: what to cut, side by side; a last chunk that is not full is filled with zeros.
        chunk: tokens to a chunk.
        dtype: of what comes out.

    Returns:
        A copy, `[parts, batch, heads, chunks, chunk, dim]`.
    """
    batch, length, heads, dim = parts[0].shape
    missing = -length % chunk
    size = (len(parts), batch, heads, (length + missing) // chunk, chunk, dim)
    cut = torch.empty(size, dtype=dtype, device=parts[0].device)
    for place, x in zip(cut, parts, strict=True):
        full = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        place.copy_(full.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4))
    return cut


def marks_to_chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut a mark of each token `[batch, length]` into `[batch, 1, chunks, chunk]`.

    Args:
        x: the marks; a last chunk that is not full is filled with the last mark.
        chunk: tokens to a chunk.
    """
    missing = -x.shape[1] % chunk
    x = torch.cat([x, x[:, -1:].expand(-1, missing)], dim=1)
    return torch.unflatten(x, 1, (-1, chunk))[:, None]


def layout_of(
    *,
    real: Tensor | None,
    run: Tensor | None,
    decay: Tensor | None,
    length: int,
    chunk: int,
    dtype: torch.dtype,
) -> Layout:
    """Work out the weights of one call.

    All are powers of the decay with an exponent of real tokens that is never negative.

    Args:
        real: whether a token stands there, `[batch, length]`; None, everywhere.
        run: number of each token's document, as `document_runs` gives it; None for one.
        decay: decay of each head `[heads]`; None where no head decays.
        length: tokens of the sequence.
        chunk: tokens to a chunk.
        dtype: of the weights.
    """
    pair = carry = keep = whole = counts = runs = rate = None
    if decay is not None:
        rate = decay.to(dtype).log()[:, None, None]
        pair, carry, keep, whole, counts = _powers(
            real=real, rate=rate, chunks=-(-length // chunk), chunk=chunk
        )
    if run is not None:
        cut = marks_to_chunks(run, chunk)
        last = cut[..., -1]
        runs = F.pad(last, (1, 0))  # the state given belongs to the first document, number 0
        before = runs[..., :-1]
        same = (cut[..., :, None] == cut[..., None, :]).to(dtype).tril(-1)
        pair = same if pair is None else pair * same
        carry = _times(carry, cut == before[..., None], dtype)
        keep = _times(keep, cut == last[..., None], dtype)
        whole = _times(whole, before == last, dtype)
    return Layout(
        pair=pair, carry=carry, keep=keep, whole=whole, counts=counts, runs=runs, rate=rate
    )


def _times(weight: Tensor | None, same: Tensor, dtype: torch.dtype) -> Tensor:
    return same.to(dtype) if weight is None else weight * same


def _powers(
    *, real: Tensor | None, rate: Tensor, chunks: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the powers of the decay: of pairs, from and to the chunk's ends, over it; and counts."""
    if real is None:
        upto = torch.arange(1, chunk + 1, device=rate.device)[None, None, None]
        before = upto - 1
        counts = torch.arange(0, (chunks + 1) * chunk, chunk, device=rate.device)[None, None]
    else:
        # What fills the last chunk is behind every token, so its marks do not matter.
        marks = marks_to_chunks(real, chunk).long()
        upto = marks.cumsum(dim=-1)
        before = upto - marks
        counts = F.pad(upto[..., -1].cumsum(dim=-1), (1, 0))
    rates = rate[..., None]  # [heads, 1, 1, 1]
    pair = torch.exp((before[..., :, None] - upto[..., None, :]).clamp(min=0) * rates).tril(-1)
    carry = torch.exp(before * rate)
    keep = torch.exp((upto[..., -1:] - upto) * rate)
    whole = torch.exp(upto[..., -1] * rate[..., 0])
    return pair, carry, keep, whole, counts
