"""Tensor memory over a whole sequence, all chunks at once: the steps of the forward pass.

With `q`, `k` the features of a chunk, `S`, `z` the state before it, `A = q k^T` and `L = k k^T`
weighed by the layout, `c` the share a token takes back (0 for the plain rule), the recurrence is

    u = v - c (carry k S + L u)       so   u = (1 + c L)^-1 (v - c carry k S)
    o = (A u + carry q S) / (A 1 + carry q z + eps)

The keys alone make `z`, so every denominator is known before any value is read: only `S` runs
from chunk to chunk, as a decaying sum, or with the delta rule by one matrix for each chunk.
"""

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from memtx.ops.tensor_layout import Layout, layout_of, marks_to_chunks, to_chunks
from memtx.ops.tensor_pointwise import features_in_place, joined, shares
from memtx.ops.tensor_products import product
from memtx.ops.tensor_scan import decayed_sums, matrix_scan


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype of sums and states: float32, or wider if the input is.

    Args:
        dtype: of the input.
    """
    return torch.promote_types(dtype, torch.float32)


class Scan(TypedDict):
    """The arguments that all decaying sums of a call share."""

    counts: Tensor | None
    runs: Tensor | None
    rate: Tensor | None


class Pass(NamedTuple):
    """What a pass needs first: inputs in chunks and what follows from keys alone."""

    q: Tensor
    k: Tensor
    v: Tensor
    real: Tensor | None
    layout: Layout
    kept: Tensor  # keys, weighed for the state behind their chunk

    @property
    def sums(self) -> torch.dtype:
        """Dtype of sums and states."""
        return accumulator(self.q.dtype)

    def carried(self, x: Tensor) -> Tensor:
        """Weigh rows of tokens by what is left of the state before their chunk."""
        carry = self.layout.carry
        return x if carry is None else x * carry[..., None].to(x.dtype)

    def scan(self) -> Scan:
        """Give the arguments of the decaying sums."""
        return Scan(counts=self.layout.counts, runs=self.layout.runs, rate=self.layout.rate)


def begin(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    real: Tensor | None,
    run: Tensor | None,
    decay: Tensor | None,
    chunk: int,
) -> Pass:
    """Cut the inputs into chunks, make the features and the layout."""
    # Products in bfloat16 are only as narrow as their inputs; float16 would overflow.
    dtype = query.dtype if query.dtype == torch.bfloat16 else accumulator(query.dtype)
    layout = layout_of(
        real=real,
        run=run,
        decay=decay,
        length=query.shape[1],
        chunk=chunk,
        dtype=accumulator(query.dtype),
    )
    both = to_chunks([query, key], chunk, dtype)
    both = joined(features_in_place, both)(both)
    cut = None if real is None else marks_to_chunks(real, chunk)[..., None]
    if cut is not None:
        both = both.mul_(cut)
    q, k = both.unbind(0)
    kept = k if layout.keep is None else k * layout.keep[..., None].to(dtype)
    (v,) = to_chunks([value], chunk, dtype)
    return Pass(q=q, k=k, v=v, real=cut, layout=layout, kept=kept)


def read_before(p: Pass, x: Tensor, norms: Tensor) -> Tensor:
    """Give `x z` of each token by the state before its chunk."""
    return p.carried(product(x, norms.to(x.dtype)[..., None], p.sums))[..., 0]


class Delta(NamedTuple):
    """A chunk: `u = inverse v + back S`, `S' = (whole + change) S + kept^T inverse v`."""

    share: Tensor
    inverse: Tensor
    back: Tensor
    change: Tensor
    whole: Tensor | None


def share_of(
    p: Pass, norms: Tensor, *, delta: Tensor, decay: Tensor | None, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Give `c`, the share of what its key reads that a token takes back, and `c L`."""
    pairs = product(p.k, p.k.mT, p.sums)
    delta, eps = delta.to(p.sums)[:, None, None], eps.to(p.sums)[:, None, None]
    left = None if decay is None else decay.to(p.sums)[:, None, None]
    before = read_before(p, p.k, norms)
    found: tuple[Tensor, Tensor] = joined(shares, pairs)(
        pairs, before, p.layout.pair, delta, left, eps
    )
    return found


def delta_of(p: Pass, share: Tensor, inverse: Tensor) -> Delta:
    """Work out how the state before a chunk goes through it."""
    dtype = p.k.dtype
    taken = p.carried(p.k * share[..., None].to(dtype).neg())
    back = product(inverse, taken, dtype)
    change = product(p.kept.mT, back, dtype).flatten(0, 1)
    whole = p.layout.whole
    if whole is not None:
        whole = whole.expand(*p.k.shape[:3]).flatten(0, 1)
    return Delta(share=share, inverse=inverse, back=back, change=change, whole=whole)


def norms_before(p: Pass, norm: Tensor | None) -> Tensor:
    """Give `z` before each chunk."""
    return decayed_sums(p.kept.sum(dim=-2, dtype=p.sums), norm, **p.scan())


def plain_states(p: Pass, memory: Tensor | None) -> Tensor:
    """Give `S` before each chunk, all rules plain."""
    added = product(p.kept.mT, p.v, p.sums).flatten(-2)
    start = None if memory is None else memory.flatten(-2)
    states = decayed_sums(added, start, **p.scan())
    return torch.unflatten(states, -1, (p.k.shape[-1], -1))


def delta_states(p: Pass, d: Delta, fresh: Tensor, memory: Tensor | None) -> Tensor:
    """Give `S` before each chunk, where a rule is the delta rule."""
    added = product(p.kept.mT, fresh.to(p.k.dtype), p.sums)
    start = None if memory is None else memory.flatten(0, 1)
    states = matrix_scan(d.whole, d.change, added.flatten(0, 1), start, False)
    return torch.unflatten(states[:, :-1], 0, added.shape[:2])
