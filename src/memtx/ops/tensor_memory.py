"""Tensor-product memory: reading and writing a state that keys and values are added to.

With the features `s(x) = ELU(x) + 1`, a state `S` `[dim, dim]` and a normaliser `z` `[dim]` for
each sequence and head, every token first reads, then is written:

    o = s(q) S / (s(q) z + eps)
    S, z = decay S, decay z
    u = v, or with the delta rule  v - s(k) S / (s(k) z + eps)
    S, z = S + s(k)^T u, z + s(k)

Padding neither reads nor writes, nor does the state decay over it. A call *commits* when it gives
its state back: the state is then made of `u` clamped to `max_delta`, and itself clamped to
`max_memory` and `max_norm`. What the call reads of itself is not clamped, so calls may be cut
anywhere as long as no clamp binds.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memtx.ops.tensor_chunks import accumulator
from memtx.ops.tensor_function import ChunkedTensorMemory
from memtx.ops.tensor_layout import document_runs

Tokens = Float[Tensor, "batch length heads dim"]
Memory = Float[Tensor, "batch heads dim dim"]
Norm = Float[Tensor, "batch heads dim"]
Marks = Bool[Tensor, "batch length"]
Documents = Int[Tensor, "batch length"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeadRules:
    """The numbers of each head, one to a head in every tensor.

    Args:
        decay: share of the state that stays when a token is written.
        delta: 1 where the head has the delta rule, 0 where it has the plain rule.
        eps: added to the denominators.
        max_delta: bound of what a token writes into a state given back.
        max_memory: bound of the numbers of `S` in a state given back.
        max_norm: bound of those of `z`.
        decays: whether any head decays.
        deltas: whether any head has the delta rule.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> one = torch.ones(2)
        >>> rules = HeadRules(decay=one, delta=0 * one, eps=1e-6 * one, max_delta=10 * one,
        ...                   max_memory=100 * one, max_norm=1000 * one, decays=False, deltas=False)
        >>> q = k = v = torch.ones(1, 3, 2, 4)
        >>> read, _, _ = tensor_memory(q, k, v, rules, None, None, None, None, 16, False)
        >>> read[0, :, 0, 0].round(decimals=3).tolist()
        [0.0, 1.0, 1.0]
    """

    decay: Tensor
    delta: Tensor
    eps: Tensor
    max_delta: Tensor
    max_memory: Tensor
    max_norm: Tensor
    decays: bool
    deltas: bool


def features(x: Tensor) -> Tensor:
    """Give `ELU(x) + 1`, computed as `exp(min(x, 0)) + max(x, 0)`: small values stay exact.

    Args:
        x: in the dtype of the sums.
    """
    return torch.exp(x.clamp(max=0)) + F.relu(x)


def retrieve(query: Tokens, memory: Memory, norm: Norm, rules: HeadRules) -> Tokens:
    """Read one state with many queries.

    Args:
        query: the queries.
        memory: the state `S`.
        norm: the state `z`.
        rules: the numbers of each head.
    """
    with torch.autocast(query.device.type, enabled=False):
        q = features(query.to(memory.dtype))
        above = torch.einsum("blhd,bhde->blhe", q, memory)
        below = torch.einsum("blhd,bhd->blh", q, norm) + rules.eps
        return (above / below[..., None]).to(query.dtype)


def write_token(
    k: Tensor, v: Tensor, memory: Tensor, norm: Tensor, rules: HeadRules
) -> tuple[Tensor, Tensor, Tensor]:
    """Let the state decay, and give what a token writes into it, and the decayed state.

    Args:
        k: features of the key, `[batch, heads, dim]`.
        v: the value, of the same shape.
        memory: the state `S`.
        norm: the state `z`.
        rules: the numbers of each head.
    """
    if rules.decays:
        memory, norm = rules.decay[:, None, None] * memory, rules.decay[:, None] * norm
    if rules.deltas:
        below = (k * norm).sum(-1) + rules.eps
        read = torch.einsum("bhd,bhde->bhe", k, memory) / below[..., None]
        v = v - rules.delta[:, None] * read
    return v, memory, norm


def tensor_memory_reference(
    query: Tokens,
    key: Tokens,
    value: Tokens,
    rules: HeadRules,
    memory: Memory | None,
    norm: Norm | None,
    real: Marks | None,
    document: Documents | None,
) -> tuple[Tokens, Memory, Norm]:
    """Read and write token by token: the definition. It always commits.

    Args:
        query: the queries.
        key: the keys.
        value: the values.
        rules: the numbers of each head.
        memory: the state `S` before the call; None for zeros.
        norm: the state `z` before the call; None for zeros.
        real: whether a token stands there; None, everywhere.
        document: a number for each document of a row; the state given belongs to the first, and
            each other starts with an empty one. None for one document.
    """
    batch, length, heads, dim = query.shape
    if length == 0:
        return _no_tokens(query, rules, memory, norm)
    dtype = accumulator(query.dtype)
    S = query.new_zeros(batch, heads, dim, dim, dtype=dtype) if memory is None else memory
    z = query.new_zeros(batch, heads, dim, dtype=dtype) if norm is None else norm
    committed = S
    stands = torch.ones_like(query[..., 0, 0], dtype=torch.bool) if real is None else real
    run = torch.zeros_like(stands).long() if document is None else document_runs(document, real)
    bound = rules.max_delta[:, None]
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        # Cut once: a backward pass through a slice for each token would grow with the square.
        q, k, v = (
            x.unbind(dim=1)
            for x in (features(query.to(dtype)), features(key.to(dtype)), value.to(dtype))
        )
        for t in range(length):
            if document is not None and t > 0:
                same = (run[:, t] == run[:, t - 1])[:, None, None]
                S, z = S.where(same[..., None], 0.0), z.where(same, 0.0)
                committed = committed.where(same[..., None], 0.0)
            here = stands[:, t, None, None]
            below = (q[t] * z).sum(-1) + rules.eps
            read = torch.einsum("bhd,bhde->bhe", q[t], S) / below[..., None]
            outputs.append(read.where(here, 0.0))
            u, left, left_norm = write_token(k[t], v[t], S, z, rules)
            clamped = u.clamp(-bound, bound)
            held = rules.decay[:, None, None] * committed + outer(k[t], clamped)
            committed = held.where(here[..., None], committed)
            S = (left + outer(k[t], u)).where(here[..., None], S)
            z = (left_norm + k[t]).where(here, z)
        memory, norm = bounded(committed, z, rules)
    return torch.stack(outputs, dim=1).to(query.dtype), memory, norm


def _no_tokens(
    query: Tensor, rules: HeadRules, memory: Tensor | None, norm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give what a call without tokens gives: nothing that is read, and the state as it was."""
    batch, _, heads, dim = query.shape
    empty = query.new_zeros(batch, heads, dim, dim, dtype=accumulator(query.dtype))
    S, z = empty if memory is None else memory, empty[..., 0] if norm is None else norm
    return query.clone(), *bounded(S, z, rules)


def outer(k: Tensor, u: Tensor) -> Tensor:
    """Give `k^T u` for each sequence and head.

    Args:
        k: `[batch, heads, dim]`.
        u: the same shape.
    """
    return k[..., None] * u[..., None, :]


def bounded(memory: Tensor, norm: Tensor, rules: HeadRules) -> tuple[Tensor, Tensor]:
    """Clamp a state that is given back.

    Args:
        memory: the state `S`.
        norm: the state `z`, which is never negative.
        rules: the numbers of each head.
    """
    most = rules.max_memory[:, None, None]
    return memory.clamp(-most, most), torch.minimum(norm, rules.max_norm[:, None])


def tensor_memory(
    query: Tokens,
    key: Tokens,
    value: Tokens,
    rules: HeadRules,
    memory: Memory | None,
    norm: Norm | None,
    real: Marks | None,
    document: Documents | None,
    chunk: int,
    commit: bool,
) -> tuple[Tokens, Memory | None, Norm | None]:
    """Read and write a whole sequence, chunk by chunk; all heads at once, whatever their rules.

    Args:
        query: the queries.
        key: the keys.
        value: the values.
        rules: the numbers of each head.
        memory: the state `S` before the call; None for zeros.
        norm: the state `z` before the call; None for zeros.
        real: as in `tensor_memory_reference`.
        document: as in `tensor_memory_reference`.
        chunk: tokens to a chunk, a power of two of at least 16.
        commit: whether to give the state back; else None comes in its place.
    """
    if query.shape[1] == 0:
        read, S, z = _no_tokens(query, rules, memory, norm)
        return (read, S, z) if commit else (read, None, None)
    decay = rules.decay if rules.decays else None
    delta = rules.delta if rules.deltas else None
    run = None if document is None else document_runs(document, real)
    with torch.autocast(query.device.type, enabled=False):
        out, written = ChunkedTensorMemory.apply(  # type: ignore[no-untyped-call]
            query, key, value, memory, norm, real, run, decay, delta, rules.eps, chunk
        )
        if not commit:
            return out, None, None
        u = value if written is None else written
        return out, *committed_state(key, u, rules, memory, norm, real, run)


def committed_state(
    key: Tensor,
    written: Tensor,
    rules: HeadRules,
    memory: Tensor | None,
    norm: Tensor | None,
    real: Tensor | None,
    run: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Give the state behind a sequence, made of what was written, clamped.

    Args:
        key: the keys.
        written: `u` of each token.
        rules: the numbers of each head.
        memory: the state `S` before the call; None for zeros.
        norm: the state `z` before the call; None for zeros.
        real: whether a token stands there; None, everywhere.
        run: number of each token's document; None for one.
    """
    dtype = accumulator(key.dtype)
    bound = rules.max_delta[:, None]
    k, u = features(key.to(dtype)), written.to(dtype).clamp(-bound, bound)
    stands = torch.ones_like(key[:1, :, 0, 0], dtype=torch.bool) if real is None else real
    weight = stands.to(dtype)[..., None]
    left = weight.new_ones(1, 1)
    if rules.decays:
        # how many tokens are written after each one, and after the state given
        upto = stands.long().cumsum(dim=1)[..., None]
        rate = rules.decay.to(dtype).log()
        weight = weight * torch.exp((upto[:, -1:] - upto) * rate)
        left = torch.exp(upto[:, -1] * rate)
    if run is not None:
        weight = weight * (run == run[:, -1:])[..., None]
        left = left * (run[:, -1:] == 0)
    k = k * weight[..., None]
    S, z = torch.einsum("blhd,blhe->bhde", k, u), k.sum(dim=1)
    if memory is not None:
        S = S + left[..., None, None] * memory
    if norm is not None:
        z = z + left[..., None] * norm
    return bounded(S, z, rules)


def tensor_memory_step(
    query: Tokens,
    key: Tokens,
    value: Tokens,
    rules: HeadRules,
    memory: Memory,
    norm: Norm,
    real: Marks | None,
) -> tuple[Tokens, Memory, Norm]:
    """Read and write one token, and commit: what decoding does.

    Args:
        query: the query, of length 1.
        key: the key.
        value: the value.
        rules: the numbers of each head.
        memory: the state `S` before the token.
        norm: the state `z` before the token.
        real: whether a token stands there; None, it does.
    """
    with torch.autocast(query.device.type, enabled=False):
        out = retrieve(query, memory, norm, rules)
        k, v = features(key[:, 0].to(memory.dtype)), value[:, 0].to(memory.dtype)
        u, left, left_norm = write_token(k, v, memory, norm, rules)
        bound = rules.max_delta[:, None]
        held, sums = bounded(left + outer(k, u.clamp(-bound, bound)), left_norm + k, rules)
        if real is not None:
            here = real[:, 0, None, None]
            out = out.where(here[..., None], 0.0)
            held, sums = held.where(here[..., None], memory), sums.where(here, norm)
    return out, held, sums


def chunk_for(length: int, dim: int) -> int:
    """Choose the tokens to a chunk.

    Args:
        length: of the sequence.
        dim: of a head.

    Returns:
        What a head of that size is fastest with, or less where the sequence is shorter.
    """
    most = 64 if dim <= 64 else 128
    return min(most, max(16, 1 << (length - 1).bit_length()))
