"""Carrying a state over chunks: sums that decay, products of matrices, and a triangular inverse."""

import torch
from torch import Tensor, library

# Chunks whose states one matrix product gives; its cost is quadratic in this and linear in length.
GROUP = 64
# Chunks that are gone through in order, rather than put together once more.
IN_ORDER = 8
# Below this size the inverse is a series of powers, above it is put together from halves.
SERIES = 16


def chunk_weights(
    *,
    counts: Tensor | None,
    runs: Tensor | None,
    rate: Tensor | None,
    first: int,
    last: int,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give how much of each chunk, and of the state before them, is left before each chunk.

    Each weight is one power of the decay, of a count that is never negative: powers are never
    divided by each other, so none overflows.

    Args:
        counts: tokens before each chunk and after the last, `[batch or 1, 1, chunks + 1]`; None
            without decay.
        runs: number of the document that the state before each chunk belongs to, of the same
            shape; None for one document.
        rate: logarithm of the decay of each head, `[heads, 1, 1]`; None without decay.
        first: number of the first chunk of the group.
        last: number of the chunk behind the group.
        like: a tensor of the dtype and device wanted.

    Returns:
        Weights `[.., last - first + 1, last - first]` of the chunks and `[.., last - first + 1]`
        of the state before the group; the last row is for the state behind the group.
    """
    size = last - first
    within = torch.ones(1, 1, size + 1, size, dtype=like.dtype, device=like.device)
    before = torch.ones(1, 1, size + 1, dtype=like.dtype, device=like.device)
    if counts is not None and rate is not None:
        here = counts[..., first : last + 1]
        ends = counts[..., first + 1 : last + 1]
        within = torch.exp((here[..., None] - ends[..., None, :]).clamp(min=0) * rate)
        before = torch.exp((here - here[..., :1]) * rate[..., 0])
    if runs is not None:
        at = runs[..., first : last + 1]
        within = within * (at[..., None] == at[..., None, 1:])
        before = before * (at == at[..., :1])
    return within.to(like.dtype).tril(-1), before.to(like.dtype)


def decayed_sums(
    added: Tensor,
    start: Tensor | None,
    *,
    counts: Tensor | None,
    runs: Tensor | None,
    rate: Tensor | None,
) -> Tensor:
    """Give the state before each chunk, a group of chunks with one matrix product.

    Args:
        added: what each chunk adds, `[batch, heads, chunks, numbers]`.
        start: the state before the first chunk, `[batch, heads, numbers]`; None for zeros.
        counts: as in `chunk_weights`.
        runs: as in `chunk_weights`.
        rate: as in `chunk_weights`.
    """
    chunks = added.shape[2]
    state, groups = start, []
    for first in range(0, chunks, GROUP):
        last = min(first + GROUP, chunks)
        within, before = chunk_weights(
            counts=counts, runs=runs, rate=rate, first=first, last=last, like=added
        )
        states = within @ added[:, :, first:last]
        if state is not None:
            states = states + before[..., None] * state[:, :, None]
        groups.append(states[:, :, :-1])
        state = states[:, :, -1]
    return groups[0] if len(groups) == 1 else torch.cat(groups, dim=2)


def decayed_sums_backward(
    gradient: Tensor, *, counts: Tensor | None, runs: Tensor | None, rate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Give the gradients of what each chunk added, and of the start.

    Args:
        gradient: of the states before each chunk, `[batch, heads, chunks, numbers]`.
        counts: as in `chunk_weights`.
        runs: as in `chunk_weights`.
        rate: as in `chunk_weights`.
    """
    chunks = gradient.shape[2]
    state = torch.zeros_like(gradient[:, :, :1])
    groups = []
    for first in reversed(range(0, chunks, GROUP)):
        last = min(first + GROUP, chunks)
        within, before = chunk_weights(
            counts=counts, runs=runs, rate=rate, first=first, last=last, like=gradient
        )
        here = gradient[:, :, first:last]
        if last == chunks:  # nothing reads the state behind the last chunk
            within, before = within[..., :-1, :], before[..., :-1]
        else:
            here = torch.cat([here, state], dim=2)
        groups.append(within.mT @ here)
        state = before[..., None, :] @ here
    return groups[0] if len(groups) == 1 else torch.cat(groups[::-1], dim=2), state[:, :, 0]


# One operator of its own, so that a compiler sees one step and not one for each chunk.
@library.custom_op("memtx::matrix_scan", mutates_args=())
def matrix_scan(factors: Tensor, added: Tensor, start: Tensor | None, backwards: bool) -> Tensor:
    """Give `x_0, x_1, ..` of `x_{c+1} = factors_c x_c + added_c`, a matrix product for each.

    Args:
        factors: `[rows, chunks, dim, dim]`.
        added: the same shape.
        start: the first state `[rows, dim, dim]`; None for zeros.
        backwards: run from the last chunk to the first, with transposed factors: what comes out
            at place `c` is then `factors_c^T x_{c+1} + added_c`, and the start stands last.

    Returns:
        All states `[rows, chunks + 1, dim, dim]`.
    """
    rows, _, dim, width = added.shape
    if backwards:
        factors, added = factors.mT.flip(1), added.flip(1)
    first = added.new_zeros(rows, dim, width) if start is None else start
    # Where steps wait for each other a GPU idles: more arithmetic in fewer steps is faster there.
    scan = scan_by_halves if added.is_cuda else scan_in_order
    found = scan(factors, added, first)
    return found.flip(1).contiguous() if backwards else found


def scan_in_order(factors: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """Give the states of `matrix_scan` one after the other: the definition.

    Args:
        factors: `[rows, chunks, dim, dim]`.
        added: the same shape.
        start: the first state, `[rows, dim, dim]`.
    """
    rows, chunks, dim, width = added.shape
    states = added.new_empty(rows, chunks + 1, dim, width)
    states[:, 0] = start
    for chunk in range(chunks):
        torch.baddbmm(
            added[:, chunk], factors[:, chunk], states[:, chunk], out=states[:, chunk + 1]
        )
    return states


def scan_by_halves(factors: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """Give the same states: two chunks are made into one until few are left, then told apart.

    It takes up to three times the products, in steps whose number grows with the logarithm of the
    number of chunks.

    Args:
        factors: `[rows, chunks, dim, dim]`.
        added: the same shape.
        start: the first state, `[rows, dim, dim]`.
    """
    chunks = added.shape[1]
    if chunks <= IN_ORDER:
        return scan_in_order(factors, added, start)
    even = chunks - chunks % 2
    first, second = factors[:, 0:even:2], factors[:, 1:even:2]
    both = second @ first
    together = added[:, 1:even:2] + second @ added[:, 0:even:2]
    known = scan_by_halves(both, together, start)
    states = added.new_empty(added.shape[0], chunks + 1, *added.shape[2:])
    states[:, 0 : even + 1 : 2] = known
    states[:, 1:even:2] = added[:, 0:even:2] + first @ known[:, :-1]
    if chunks > even:
        states[:, chunks] = added[:, even] + factors[:, even] @ known[:, -1]
    return states


@matrix_scan.register_fake
def _(factors: Tensor, added: Tensor, start: Tensor | None, backwards: bool) -> Tensor:  # noqa: ARG001
    rows, chunks, dim, width = added.shape
    return added.new_empty(rows, chunks + 1, dim, width)


def unit_lower_inverse(strict: Tensor) -> Tensor:
    """Give `(1 + strict)^-1` for strictly lower triangular matrices: a triangular solve.

    Two halves of the rows are inverted side by side and joined by two products, so the work is
    large products of all matrices at once. The smallest blocks are a finite series of powers; its
    terms do not grow, because the rows of `strict` are shares of a whole: not negative, with a
    sum of at most 1.

    Args:
        strict: `[..., size, size]`, zero on and above the diagonal, `size` a power of two.
    """
    size = strict.shape[-1]
    if size <= SERIES:
        # (1 - p)(1 + p^2)(1 + p^4) .. ends, because p^size is zero
        inverse = torch.eye(size, dtype=strict.dtype, device=strict.device) - strict
        power, reached = strict, 2
        while reached < size:
            power = power @ power
            inverse = inverse + inverse @ power
            reached *= 2
        return inverse
    half = size // 2
    blocks = torch.stack([strict[..., :half, :half], strict[..., half:, half:]])
    upper, lower = unit_lower_inverse(blocks).unbind(0)
    corner = -(lower @ (strict[..., half:, :half] @ upper))
    above = torch.cat([upper, torch.zeros_like(corner)], dim=-1)
    return torch.cat([above, torch.cat([corner, lower], dim=-1)], dim=-2)
