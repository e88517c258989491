"""Insertions of one size, each on rows of its own, computed as one.

Parameters of the same name are stacked, and each kind of part has here how a stack of it is
computed. What is of another kind cannot be stacked, and is read by itself.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memtx.adapters.insertion import Insertion
from memtx.blocks import Residual
from memtx.memory.cross_attention import MemoryCrossAttention
from memtx.ops.memory_reads import dense_reads
from memtx.transformer.feed_forward import FeedForward
from memtx.transformer.head_scales import ScaledHeads, UnitHeads, scaled_heads, unit_heads
from memtx.transformer.linear import Linear, LowRankLinear
from memtx.transformer.norm import LayerNorm, RMSNorm
from memtx.transformer.swiglu import SwiGLU

Parts = Sequence[Any]
Kept = TypeVar("Kept")

_KEPT: ContextVar[dict[tuple[int, ...], tuple[list[Any], Any]] | None]
_KEPT = ContextVar("kept stacks", default=None)

# Attributes that say how a part began or where it stands, not what it computes.
_ASIDE = ("init", "layer", "site", "training")


def read_stacked(insertions: Sequence[Insertion], streams: Tensor) -> Tensor:
    """Read several insertions, each by a stream of its own.

    Args:
        insertions: of one signature; one may stand there several times.
        streams: `[insertions, batch, length, dim]`.
    """
    first = insertions[0]
    own = first.in_own_dtype(streams)
    added: Tensor | None = None
    for number in range(len(first.sublayers)):
        here = own if added is None else own + added
        read = _mapped([each.sublayers[number] for each in insertions], here)
        added = read if added is None else added + read
    if added is None:
        raise RuntimeError("Insertion: sublayers must not be empty; build it anew.")
    return added.to(streams.dtype)


def signature(insertion: Insertion) -> Hashable:
    """Give what insertions must have in common to be stacked; None if this one cannot be.

    Args:
        insertion: the insertion.
    """
    parts = [part for sublayer in insertion.sublayers for part in sublayer.modules()]
    banks = {id(inner) for part in parts if hasattr(part, "bank") for inner in part.bank.modules()}  # type: ignore[union-attr]
    known = all(type(part) in _MAPS for part in parts if id(part) not in banks)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in insertion.modules())
    return _form(insertion) if known and not hooked else None


def _form(module: nn.Module) -> Hashable:
    """Give what a part is, and all its sizes."""
    plain = {name: value for name, value in vars(module).items() if name not in _ASIDE}
    values = tuple(
        (name, value if isinstance(value, bool | int | float | str) else type(value))
        for name, value in plain.items()
        if not name.startswith("_")
    )
    held = {**module._parameters, **module._buffers}
    tensors = tuple(
        (name, None if each is None else (each.shape, each.dtype, each.device))
        for name, each in held.items()
    )
    children = tuple((name, _form(child)) for name, child in module.named_children())
    return (type(module), values, tensors, children)


@contextmanager
def parameters_at_rest() -> Iterator[None]:
    """Promise that no parameter changes inside a `with` block, so that stacks of them are kept.

    Only what is computed without gradients is kept, until the end of the block.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def _kept(owners: Parts, make: Callable[[], Kept]) -> Kept:
    """Give what is made of parts or tensors, where none can change what was made before."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return make()
    store = _KEPT.get()
    if store is None:
        return make()
    key = tuple(map(id, owners))
    if key not in store:
        # The owners are kept too: a number is theirs as long as they are there.
        store[key] = (list(owners), make())
    found: Kept = store[key][1]
    return found


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Give `[parts, ...]`; the gradient of one that stands there several times is the sum."""
    return _kept(tensors, lambda: torch.stack(list(tensors)))


def _mapped(parts: Parts, x: Tensor) -> Tensor:
    """Map `[parts, ...]` by parts of one kind, each its own slice."""
    return _MAPS[type(parts[0])](parts, x)


def _children(parts: Parts, name: str) -> list[Any]:
    return [getattr(part, name) for part in parts]


def _product(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    flat: Tensor = torch.bmm(x.flatten(1, -2), _stack(weights).transpose(1, 2))
    product: Tensor = flat.unflatten(1, x.shape[1:-1])
    return product


def _along(x: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Give one vector for each part, to be set against the last axis of `x`."""
    return _stack(vectors).to(x.dtype).view(len(vectors), *[1] * (x.ndim - 2), -1)


def _linear(parts: Parts, x: Tensor) -> Tensor:
    mapped = _product(x, _children(parts, "weight"))
    return mapped + _along(mapped, _children(parts, "shift")) if parts[0].bias else mapped


def _low_rank_linear(parts: Parts, x: Tensor) -> Tensor:
    return _product(_product(x, _children(parts, "down")), _children(parts, "up"))


def _unit_heads(parts: Parts, x: Tensor) -> Tensor:
    first, mapped = parts[0], _mapped(_children(parts, "projection"), x)
    return unit_heads(mapped, num_heads=first.num_heads, eps=first.eps)


def _scaled_heads(parts: Parts, x: Tensor) -> Tensor:
    mapped = _mapped(_children(parts, "projection"), x)
    return scaled_heads(mapped, _along(mapped.float(), _children(parts, "log_scale")))


def _rms_norm(parts: Parts, x: Tensor) -> Tensor:
    normed = F.rms_norm(x, (x.shape[-1],), None, parts[0].eps)
    return normed * _along(x, _children(parts, "weight"))


def _layer_norm(parts: Parts, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, (x.shape[-1],), None, None, parts[0].eps)
    return normed * _along(x, _children(parts, "weight")) + _along(x, _children(parts, "bias"))


def _swiglu(parts: Parts, x: Tensor) -> Tensor:
    gate = _mapped(_children(parts, "gate_proj"), x)
    inner = F.silu(gate) * _mapped(_children(parts, "up_proj"), x)
    return _mapped(_children(parts, "down_proj"), inner)


def _feed_forward(parts: Parts, x: Tensor) -> Tensor:
    inner = parts[0].activation(_mapped(_children(parts, "up_proj"), x))
    return _mapped(_children(parts, "down_proj"), inner)


def _residual(parts: Parts, x: Tensor) -> Tensor:
    return _mapped(_children(parts, "sublayer"), _mapped(_children(parts, "norm"), x))


def _cross_attention(parts: Parts, x: Tensor) -> Tensor:
    first = parts[0]
    is_frozen = any(part.frozen is not None for part in parts)

    def keys_and_values() -> tuple[Tensor, Tensor]:
        if is_frozen:
            pairs = [part.keys_and_values(x.device) for part in parts]
            return torch.stack([key for key, _ in pairs]), torch.stack([each for _, each in pairs])
        tokens = torch.stack([part.bank().to(x.device) for part in parts])
        key = _mapped(_children(parts, "k_proj"), tokens)
        value = _mapped(_children(parts, "v_proj"), tokens)
        heads = (first.num_kv_heads, -1)
        return key.unflatten(-1, heads), value.unflatten(-1, heads)

    key, value = _kept(parts, keys_and_values)
    query = _mapped(_children(parts, "q_proj"), x).unflatten(-1, (first.num_heads, -1))
    dropout = first.dropout if first.training else 0.0
    # A frozen memory is read in the dtype in which it is kept.
    dtype = key.dtype if is_frozen else query.dtype
    read = dense_reads(query.to(dtype), key, value, dropout).to(query.dtype)
    return _mapped(_children(parts, "o_proj"), read.flatten(-2))


_MAPS: dict[type, Callable[[Parts, Tensor], Tensor]] = {
    FeedForward: _feed_forward,
    LayerNorm: _layer_norm,
    Linear: _linear,
    LowRankLinear: _low_rank_linear,
    MemoryCrossAttention: _cross_attention,
    RMSNorm: _rms_norm,
    Residual: _residual,
    ScaledHeads: _scaled_heads,
    SwiGLU: _swiglu,
    UnitHeads: _unit_heads,
}
