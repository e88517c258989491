"""What each part of a composed model asks for, from its sizes."""

from collections.abc import Callable
from typing import Any

from torch import nn

from memtx.evaluate.work import (
    NOTHING,
    Call,
    Work,
    attended,
    is_trained,
    looked_up,
    product,
    projected,
)
from memtx.memory import MemoryCrossAttention, RoutedMemoryCrossAttention
from memtx.tensor import LinearMemoryAttention
from memtx.transformer import (
    FeedForward,
    LayerNorm,
    Linear,
    LowRankLinear,
    RMSNorm,
    SelfAttention,
    SwiGLU,
    TiedHead,
)


def mapped_by_torch(part: Any, call: Call) -> Work:
    """Count one of torch's own linear maps; a quantized one computes as it says it does.

    Args:
        part: the map, with `in_features` and `out_features`.
        call: what it is called with.
    """
    return product(
        2 * call.tokens * int(part.in_features) * int(part.out_features),
        gradients=part.weight.requires_grad + call.live,
    )


def _mapped(part: Any, call: Call) -> Work:
    return projected(part, rows=call.tokens, live=call.live)


def _thought(part: Any, call: Call) -> Work:
    inner = [each for name, each in part._modules.items() if name != "down_proj"]
    work = _mapped(part.down_proj, call.after(inner))
    for each in inner:
        work += _mapped(each, call)
    return work


def _self_attended(part: Any, call: Call) -> Work:
    inner = (part.q_proj, part.k_proj, part.v_proj)
    query, key, value = (call.after([each]).live for each in inner)
    work = attended(
        queries=call.tokens,
        keys=call.length,
        width=part.q_proj.out_features,
        live=(query, key, value),
    )
    for each in inner:
        work += _mapped(each, call)
    return work + _mapped(part.o_proj, call.after(inner))


def _remembered(part: Any, call: Call) -> Work:
    """Count a tensor memory: of each state a read and a write, and a read for the delta rule."""
    heads = part.memory.memories
    passes = sum(3 if each.config.use_delta_rule else 2 for each in heads)
    inner = (part.q_proj, part.k_proj, part.v_proj)
    behind = call.after(inner)
    states = 2 * call.tokens * passes * int(part.memory.dim) ** 2
    work = product(states, gradients=2 * behind.live)
    for each in inner:
        work += mapped_by_torch(each, call)
    return work + mapped_by_torch(part.o_proj, behind)


def _read(part: Any, *, call: Call, known: int, seen: int, weighed: bool) -> Work:
    """Count a read of a bank, of which `known` tokens are projected and `seen` by each query."""
    bank = isinstance(part.bank, nn.Module) and is_trained(part.bank)
    query = call.after([part.q_proj]).live or weighed
    key, value = bank or is_trained(part.k_proj), bank or is_trained(part.v_proj)
    behind = Call(batch=call.batch, length=call.length, live=query or key or value)
    return (
        _mapped(part.q_proj, call)
        + looked_up(part.bank, rows=known)
        + projected(part.k_proj, rows=known, live=bank)
        + projected(part.v_proj, rows=known, live=bank)
        + attended(
            queries=call.tokens,
            keys=seen,
            width=part.q_proj.out_features,
            live=(query, key, value),
        )
        + _mapped(part.o_proj, behind)
    )


def _dense_read(part: Any, call: Call) -> Work:
    memory = part.bank.num_memory_tokens
    return _read(part, call=call, known=memory, seen=memory, weighed=False)


def _routed_read(part: Any, call: Call) -> Work:
    router = part.router
    count = router.strategy.count(call.length, 0)
    segments = call.batch * count
    shared = router.num_shared_chapters
    chapters = min(router.num_chapters, shared + segments * router.top_k)
    pooled = NOTHING
    if router.strategy.pools:
        pooled = product(2 * segments * call.length * router.dim, gradients=int(call.live))
    return (
        pooled
        + projected(router.scorer, rows=segments, live=call.live)
        + _read(
            part,
            call=call,
            known=chapters * part.tokens_per_chapter,
            seen=(shared + router.top_k) * part.tokens_per_chapter,
            weighed=call.live or is_trained(router),
        )
    )


FREE = (LayerNorm, RMSNorm, nn.LayerNorm)
COSTS: dict[type, Callable[[Any, Call], Work]] = {
    FeedForward: _thought,
    Linear: _mapped,
    LinearMemoryAttention: _remembered,
    LowRankLinear: _mapped,
    MemoryCrossAttention: _dense_read,
    RoutedMemoryCrossAttention: _routed_read,
    SelfAttention: _self_attended,
    SwiGLU: _thought,
    TiedHead: _mapped,
    nn.Linear: mapped_by_torch,
}
