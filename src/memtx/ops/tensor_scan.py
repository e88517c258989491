"""Carrying a state over chunks: sums that decay, products of matrices, and a triangular inverse."""

import torch
from torch import Tensor, library

from memtx.ops.tensor_products import add_product

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
def matrix_scan(
    whole: Tensor | None, change: Tensor, added: Tensor, start: Tensor | None, backwards: bool
) -> Tensor:
    """Give `x_0, x_1, ..` of `x_{c+1} = (whole_c + change_c) x_c + added_c`.

    What a chunk changes stands apart from what it leaves as it is: rounded to a narrow dtype, it is
    as exact as what is added, however many chunks a state goes through.

    Args:
        whole: share of the state that stays, `[rows, chunks]`; None, all of it.
        change: `[rows, chunks, dim, dim]`, in the dtype of the inputs.
        added: the same shape, in the dtype of sums.
        start: the first state `[rows, dim, dim]`; None for zeros.
        backwards: run from the last chunk to the first, with transposed matrices: what comes out
            at place `c` is then `(whole_c + change_c)^T x_{c+1} + added_c`, and the start stands
            last.

    Returns:
        All states `[rows, chunks + 1, dim, dim]`.
    """
    first = torch.zeros_like(added[:, 0]) if start is None else start
    # Where steps wait for each other a GPU idles: more arithmetic in fewer steps is faster there.
    scan = scan_by_halves if added.is_cuda else scan_in_order
    return scan(whole, change, added, first, backwards)


def scan_in_order(
    whole: Tensor | None, change: Tensor, added: Tensor, start: Tensor, backwards: bool
) -> Tensor:
    """Give the states of `matrix_scan` one after the other: the definition.

    Args:
        whole: as in `matrix_scan`.
        change: as in `matrix_scan`.
        added: as in `matrix_scan`.
        start: the first state, `[rows, dim, dim]`.
        backwards: as in `matrix_scan`.
    """
    rows, chunks, dim, width = added.shape
    factors = change.to(added.dtype, copy=True)
    factors.diagonal(dim1=-2, dim2=-1).add_(1.0 if whole is None else whole[..., None])
    states = added.new_empty(rows, chunks + 1, dim, width)
    if backwards:
        factors = factors.mT
        states[:, chunks] = start
        for chunk in reversed(range(chunks)):
            here, behind = states[:, chunk], states[:, chunk + 1]
            torch.baddbmm(added[:, chunk], factors[:, chunk], behind, out=here)
        return states
    states[:, 0] = start
    for chunk in range(chunks):
        here, before = states[:, chunk + 1], states[:, chunk]
        torch.baddbmm(added[:, chunk], factors[:, chunk], before, out=here)
    return states


def scan_by_halves(
    whole: Tensor | None, change: Tensor, added: Tensor, start: Tensor, backwards: bool
) -> Tensor:
    """Give the same states: two chunks are made into one until few are left, then told apart.

    It takes up to three times the products, in steps whose number grows with the logarithm of the
    number of chunks.

    Args:
        whole: as in `matrix_scan`.
        change: as in `matrix_scan`.
        added: as in `matrix_scan`.
        start: the first state, `[rows, dim, dim]`.
        backwards: as in `matrix_scan`.
    """
    chunks = added.shape[1]
    if chunks <= IN_ORDER:
        return scan_in_order(whole, change, added, start, backwards)
    # A chunk without a partner is gone through last.
    alone = chunks % 2
    skipped = alone if backwards else 0
    pairs = slice(skipped, skipped + chunks - alone)
    left, right = change[:, pairs].unflatten(1, (-1, 2)).unbind(2)
    near, far = (right.mT, left.mT) if backwards else (left, right)
    near_added, far_added = _ordered(added[:, pairs], backwards)
    shares = None if whole is None else whole[:, pairs]
    both = _weighed(left, shares, 1) + _weighed(right, shares, 0)
    add_product(both, right, left, sign=1.0)
    far_at = 0 if backwards else 1
    together = far_added + _weighed(near_added, shares, far_at)
    add_product(together, far, near_added, sign=1.0)
    left_of_both = None if shares is None else shares.unflatten(1, (-1, 2)).prod(dim=2)
    known = scan_by_halves(left_of_both, both, together, start, backwards)
    before = known[:, 1:] if backwards else known[:, :-1]
    within = near_added + _weighed(before, shares, 1 - far_at)
    add_product(within, near, before, sign=1.0)
    states = added.new_empty(added.shape[0], chunks + 1, *added.shape[2:])
    states[:, skipped : chunks + 1 : 2][:, : known.shape[1]] = known
    states[:, skipped + 1 : chunks : 2][:, : within.shape[1]] = within
    if alone:
        last, end = (slice(0, 1), known[:, 0]) if backwards else (slice(-1, None), known[:, -1])
        rest = None if whole is None else whole[:, last]
        final = scan_in_order(rest, change[:, last], added[:, last], end, backwards)
        states[:, 0 if backwards else chunks] = final[:, 0 if backwards else 1]
    return states


def _ordered(pairs: Tensor, backwards: bool) -> tuple[Tensor, ...]:
    """Give of each pair the one that a scan meets first, and the other."""
    two: tuple[Tensor, ...] = pairs.unflatten(1, (-1, 2)).unbind(2)
    return two[::-1] if backwards else two


def _weighed(x: Tensor, shares: Tensor | None, at: int) -> Tensor:
    """Multiply by the share that stays in the left or right chunk of each pair."""
    if shares is None:
        return x
    return x * shares[:, at::2, None, None].to(x.dtype)


@matrix_scan.register_fake
def _(
    whole: Tensor | None,  # noqa: ARG001
    change: Tensor,  # noqa: ARG001
    added: Tensor,
    start: Tensor | None,  # noqa: ARG001
    backwards: bool,  # noqa: ARG001
) -> Tensor:
    rows, chunks, dim, width = added.shape
    return added.new_empty(rows, chunks + 1, dim, width)


def unit_lower_inverse(strict: Tensor) -> Tensor:
    """Give `(1 + strict)^-1` for strictly lower triangular matrices: a triangular solve.

    Blocks on the diagonal are inverted side by side, each two are joined by two products, and so
    on, so the work is large products of all matrices at once. The smallest blocks are a finite
    series of powers; its terms do not grow, because the rows of `strict` are shares of a whole:
    not negative, with a sum of at most 1.

    Args:
        strict: `[..., size, size]`, zero on and above the diagonal, `size` a power of two.
    """
    size = strict.shape[-1]
    matrices = strict.reshape(-1, size, size)
    block = min(size, SERIES)
    power = _blocks(matrices, block)
    # (1 - p)(1 + p^2)(1 + p^4) .. ends, because p^block is zero
    inverse = torch.eye(block, dtype=strict.dtype, device=strict.device) - power
    reached = 2
    while reached < block:
        power = torch.bmm(power, power)
        inverse = torch.baddbmm(inverse, inverse, power)
        reached *= 2
    while block < size:
        upper, lower = inverse.unflatten(0, (-1, 2)).unbind(1)
        beside = _blocks(matrices, 2 * block)[:, block:, :block]
        inverse = inverse.new_zeros(upper.shape[0], 2 * block, 2 * block)
        inverse[:, :block, :block], inverse[:, block:, block:] = upper, lower
        corner = inverse[:, block:, :block]
        corner.baddbmm_(lower, torch.bmm(beside, upper), alpha=-1)
        block *= 2
    return inverse.view_as(strict)


def _blocks(matrices: Tensor, block: int) -> Tensor:
    """Give the blocks on the diagonals, `[matrices * blocks, block, block]`."""
    cut: Tensor = matrices.unflatten(1, (-1, block)).unflatten(3, (-1, block))
    return cut.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 1)
