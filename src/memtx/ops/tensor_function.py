"""Tensor memory over a whole sequence, all chunks at once, with a backward pass of its own.

The backward pass makes features and products again, so that what is kept grows with the length
by states and rows of tokens, not by squares of chunks.
"""

from typing import Any, final

import torch
from torch import Tensor

from memtx.checks import require
from memtx.ops.fused import outcome
from memtx.ops.tensor_chunks import (
    Delta,
    Pass,
    begin,
    delta_of,
    delta_states,
    norms_before,
    plain_states,
    read_before,
    share_of,
)
from memtx.ops.tensor_layout import to_chunks
from memtx.ops.tensor_pointwise import (
    divided_backward,
    divided_to_tokens,
    features_backward,
    joined,
    masked,
    masked_sum,
    taken_backward,
    to_tokens,
)
from memtx.ops.tensor_products import add_product, product
from memtx.ops.tensor_scan import decayed_sums_backward, matrix_scan, unit_lower_inverse


@final
class ChunkedTensorMemory(torch.autograd.Function):
    """What a sequence reads and, with the delta rule, what it writes in place of its values.

    Source: the chunked forms of linear attention and of the delta rule (Yang et al. 2024, arXiv
    2406.06484), here with the normaliser of the retrieval inside the rule.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        memory: Tensor | None,
        norm: Tensor | None,
        real: Tensor | None,
        run: Tensor | None,
        decay: Tensor | None,
        delta: Tensor | None,
        eps: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Give what is read and, with the delta rule, what is written.

        Args:
            ctx: keeps what the backward pass needs.
            query: `[batch, length, heads, dim]`.
            key: the same shape.
            value: the same shape.
            memory: the state `S` before the sequence; None for zeros.
            norm: the state `z` before the sequence; None for zeros.
            real: `[batch, length]`; None, no token is padding.
            run: `[batch, length]` as `document_runs` gives it; None for one document.
            decay: `[heads]`; None where no head decays.
            delta: 1 for heads with the delta rule and 0 for others; None where none has it.
            eps: added to every denominator, `[heads]`.
            chunk: tokens to a chunk, a power of two.
        """
        p = begin(query, key, value, real=real, run=run, decay=decay, chunk=chunk)
        norms = norms_before(p, norm)
        inverse = share = written = None
        u = p.v
        if delta is None:
            states = plain_states(p, memory).to(p.q.dtype)
        else:
            share, strict = share_of(p, norms, delta=delta, decay=decay, eps=eps)
            inverse = unit_lower_inverse(strict).to(p.q.dtype)
            d = delta_of(p, share, inverse)
            written = product(inverse, p.v, p.sums)
            states = delta_states(p, d, written, memory).to(p.q.dtype)
            add_product(written, d.back, states, sign=1.0)
            u = written.to(p.q.dtype)
        pairs = masked(product(p.q, p.k.mT, p.q.dtype), p.layout.pair)
        below = pairs.sum(dim=-1, dtype=p.sums) + read_before(p, p.q, norms)
        below += eps.to(p.sums)[:, None, None]
        out = product(pairs, u, p.sums)
        add_product(out, p.carried(p.q), states, sign=1.0)
        length = query.shape[1]
        result = joined(divided_to_tokens, out)(out, below, query.dtype)[:, :length]
        # Where all that is read is of few tokens, what it differs from each of them by is little:
        # rounded, nothing would be left of it in the gradients of queries and keys.
        exact = out if decay is not None and query.dtype != p.sums else None
        ctx.save_for_backward(
            *(query, key, value, real, run, decay, delta),
            *(result if exact is None else exact, states, norms, below, inverse, share, written),
        )
        ctx.chunk, ctx.has_memory, ctx.has_norm = chunk, memory is not None, norm is not None
        ctx.set_materialize_grads(False)
        if written is None:
            return outcome(result), None
        return outcome(result), outcome(to_tokens(written, p.sums)[:, :length])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Give the gradients of query, key, value and of the state given.

        Args:
            ctx: what the forward pass kept.
            gradients: of what was read and of what was written; None where nothing used it.
        """
        require(
            ok=torch.compiler.is_compiling() or not torch.is_grad_enabled(),
            owner="tensor_memory",
            rule="a gradient must be taken once",
            got={"create_graph": True},
            remedy="use tensor_memory_reference, which is differentiated by torch",
        )
        query, key, value, real, run, decay, _, result, *kept = ctx.saved_tensors
        length, chunk = query.shape[1], ctx.chunk
        with torch.autocast(query.device.type, enabled=False):
            p = begin(query, key, value, real=real, run=run, decay=decay, chunk=chunk)
            wanted = torch.zeros_like(query) if gradients[0] is None else gradients[0]
            gradient, read = outcome_in_chunks(wanted, result, chunk, query.dtype)
            found = backward_in_chunks(
                p,
                gradient,
                read,
                None if gradients[1] is None else to_chunks([gradients[1]], chunk, p.sums)[0],
                query.dtype,
                *kept,
            )
        tokens = [x[:, :length] for x in found[:3]]
        memory = found[3] if ctx.has_memory else None
        norm = found[4] if ctx.has_norm else None
        return *tokens, memory, norm, None, None, None, None, None, None


def outcome_in_chunks(
    wanted: Tensor, result: Tensor, chunk: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Give the gradient of what was read, and what was read, in chunks.

    Args:
        wanted: the gradient, `[batch, length, heads, dim]`.
        result: what was read, as the forward pass kept it: in chunks already, or as `wanted` is.
        chunk: tokens to a chunk.
        dtype: of what is cut.
    """
    if result.ndim > wanted.ndim:
        return to_chunks([wanted], chunk, dtype)[0], result
    return to_chunks([wanted, result], chunk, dtype).unbind(0)


def backward_in_chunks(
    p: Pass,
    gradient: Tensor,
    result: Tensor,
    written_gradient: Tensor | None,
    narrow: torch.dtype,
    states: Tensor,
    norms: Tensor,
    below: Tensor,
    inverse: Tensor | None,
    share: Tensor | None,
    written: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the gradients of query, key, value, memory and norm.

    Args:
        p: the inputs in chunks.
        gradient: of what was read.
        result: what was read.
        written_gradient: of what was written; None if nothing used it.
        narrow: dtype of the first three gradients.
        states: `S` before each chunk.
        norms: `z` before each chunk.
        below: the denominators of what was read.
        inverse: `(1 + c L)^-1`; None where no head has the delta rule.
        share: `c`; None as well.
        written: `u`; None as well.
    """
    dtype, sums = p.q.dtype, p.sums
    weights = p.layout.pair
    d_below, d_above = joined(divided_backward, result)(gradient, result, below, dtype)
    carried = p.carried(p.q)
    d_u = product(masked(product(p.q, p.k.mT, dtype), weights).mT, d_above, sums)
    if written_gradient is not None:
        d_u += written_gradient
    d_states = product(carried.mT, d_above, sums)
    d = None if inverse is None or share is None else delta_of(p, share, inverse)
    behind, d_memory = states_backward(p, d, d_states, d_u)
    add_product(d_u, p.kept, behind, sign=1.0)
    u = p.v if written is None else written.to(dtype)
    d_pairs = product(d_above, u.mT, sums)
    d_pairs = joined(masked_sum, d_pairs)(d_pairs, d_below, weights, dtype)
    d_q = product(d_pairs, p.k, sums)
    add_carried(p, d_q, d_above, states, d_below, norms)
    d_k = product(d_pairs.mT, p.q, sums)
    d_norms = product(d_below.to(dtype)[..., None, :], carried, sums)[..., 0, :]
    if d is not None and written is not None:
        d_u, d_read = rule_backward(p, d, written, u, d_u.to(dtype), states, norms, d_k)
        d_norms += product(d_read.to(dtype)[..., None, :], p.carried(p.k), sums)[..., 0, :]
    d_behind, d_norm = decayed_sums_backward(d_norms, **p.scan())
    if p.layout.keep is None:
        add_product(d_k, u, behind.mT, sign=1.0)
        d_k += d_behind[..., None, :]
    else:
        d_kept = product(u, behind.mT, sums).add_(d_behind[..., None, :])
        d_k.addcmul_(d_kept, p.layout.keep[..., None])
    behind_features = joined(features_backward, d_q)
    d_query, d_key = behind_features(d_q, p.q, narrow), behind_features(d_k, p.k, narrow)
    return d_query, d_key, to_tokens(d_u, narrow), d_memory, d_norm


def states_backward(
    p: Pass, d: Delta | None, d_states: Tensor, d_u: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the gradients of the state behind each chunk, and of the state given.

    Args:
        p: the inputs in chunks.
        d: the delta rule; None where no head has it.
        d_states: gradient of the state before each chunk by what the chunk reads; overwritten.
        d_u: gradient of what each chunk writes by what it reads.
    """
    if d is None:
        behind, d_memory = decayed_sums_backward(d_states.flatten(-2), **p.scan())
        return behind.view_as(d_states).to(p.q.dtype), d_memory.view_as(d_states[:, :, 0])
    add_product(d_states, d.back.mT, d_u, sign=1.0)
    scanned = matrix_scan(d.whole, d.change, d_states.flatten(0, 1), None, True)
    scanned = scanned.unflatten(0, d_states.shape[:2])
    return scanned[:, :, 1:].to(p.q.dtype), scanned[:, :, 0]


def add_carried(
    p: Pass, total: Tensor, wanted: Tensor, states: Tensor, of_sums: Tensor, norms: Tensor
) -> None:
    """Add to the gradient of rows of tokens what they read of the state before their chunk.

    Args:
        p: the inputs in chunks.
        total: what is added to.
        wanted: the gradient of what is read of `S`.
        states: `S` before each chunk.
        of_sums: the gradient of what is read of `z`.
        norms: `z` before each chunk.
    """
    if p.layout.carry is None:
        add_product(total, wanted, states.mT, sign=1.0)
        total.addcmul_(of_sums[..., None], norms[..., None, :])
        return
    carried = product(wanted, states.mT, p.sums)
    carried.addcmul_(of_sums[..., None], norms[..., None, :])
    total.add_(p.carried(carried))


def rule_backward(
    p: Pass,
    d: Delta,
    written: Tensor,
    u: Tensor,
    d_u: Tensor,
    states: Tensor,
    norms: Tensor,
    d_k: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give the gradients of the values and of the keys' denominators; add that of the keys.

    Args:
        p: the inputs in chunks.
        d: the delta rule.
        written: `u`.
        u: the same in the dtype of the inputs.
        d_u: its gradient.
        states: `S` before each chunk.
        norms: `z` before each chunk.
        d_k: gradient of the keys' features, which is added to.
    """
    dtype, sums = p.q.dtype, p.sums
    d_v = product(d.inverse.mT, d_u, sums)
    # What is taken back has the opposite sign of what is written.
    d_read, taken = joined(taken_backward, d_v)(d_v, p.v, written, d.share, dtype)
    d_pairs = product(taken, u.mT, sums)
    d_pairs = joined(masked_sum, d_pairs)(d_pairs, d_read, p.layout.pair, dtype)
    add_product(d_k, d_pairs + d_pairs.mT, p.k, sign=1.0)
    add_carried(p, d_k, taken, states, d_read, norms)
    return d_v, d_read
