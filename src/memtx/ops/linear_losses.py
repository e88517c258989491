"""Losses over a large vocabulary that hold the logits of a few tokens at a time.

A loss of logits knows its gradient as soon as it knows its value. So the forward takes one chunk of
tokens after another, makes their logits once, and keeps of them only the gradients for the hidden
states and for the head, if it is trained; the backward scales these. torch's own
`linear_cross_entropy` (from 2.13) works likewise, but answers in bfloat16 for bfloat16 hidden
states, which a sum of many tokens does not survive, and knows neither autocast, capped logits nor a
divergence.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from memtx.context import IGNORED
from memtx.ops.fused import fused, outcome
from memtx.ops.heads import Head, LinearHead, ModuleHead, capped

WORTH_COMPILING = 16  # tokens
Gradients = list[Tensor | None]
# A loss, and its gradient for the logits before they are capped.
ValueAndSlope = tuple[Tensor, Tensor | None]


def cross_entropy_reference(
    hidden: Float[Tensor, "tokens dim"], targets: Int[Tensor, " tokens"], head: Head
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of all tokens from their logits: the definition.

    Args:
        hidden: final hidden states.
        targets: the token each must predict; -100 where none, which adds nothing.
        head: gives logits `[tokens, vocabulary]` of hidden states.
    """
    return F.cross_entropy(_widened(head(hidden)), targets, reduction="sum", ignore_index=IGNORED)


def kl_divergence_reference(
    hidden: Float[Tensor, "tokens dim"], teacher: Float[Tensor, "tokens dim"], head: Head
) -> Float[Tensor, ""]:
    """Sum KL(teacher || student) of all tokens from their logits: the definition.

    Args:
        hidden: final hidden states of the student.
        teacher: final hidden states of the teacher, under the same head; its logits are constants.
        head: gives logits `[tokens, vocabulary]` of hidden states.
    """
    given = F.log_softmax(_widened(head(hidden)), dim=-1)
    wanted = F.log_softmax(_widened(head(teacher)), dim=-1).detach()
    return F.kl_div(given, wanted, log_target=True, reduction="sum")


def chunked_cross_entropy(
    hidden: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    chunk: int,
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of all tokens, holding the logits of `chunk` tokens at a time.

    Args:
        hidden: final hidden states.
        targets: the token each must predict; -100 where none, which adds nothing.
        head: gives logits `[tokens, vocabulary]` of hidden states.
        chunk: how many tokens' logits to hold.
    """
    loss = _Loss(definition=cross_entropy_reference, of_piece=_cross_entropy_of_piece)
    return _sum_over_chunks(loss, hidden=hidden, other=targets, head=head, chunk=chunk)


def chunked_kl_divergence(
    hidden: Float[Tensor, "tokens dim"],
    teacher: Float[Tensor, "tokens dim"],
    head: Head,
    chunk: int,
) -> Float[Tensor, ""]:
    """Sum KL(teacher || student) of all tokens, holding the logits of `chunk` tokens at a time.

    Args:
        hidden: final hidden states of the student.
        teacher: final hidden states of the teacher, under the same head; its logits are constants.
        head: gives logits `[tokens, vocabulary]` of hidden states.
        chunk: how many tokens' logits of each to hold.
    """
    loss = _Loss(definition=kl_divergence_reference, of_piece=_divergence_of_piece)
    return _sum_over_chunks(loss, hidden=hidden, other=teacher, head=head, chunk=chunk)


@final
@dataclass(frozen=True, kw_only=True)
class _Loss:
    """A loss as its definition, and as what gives its slope for the logits along with it."""

    definition: Callable[[Tensor, Tensor, Head], Tensor]
    of_piece: Callable[[Tensor, Tensor, float | None, bool], ValueAndSlope]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What a loss is taken of, beside the hidden states."""

    loss: _Loss
    other: Tensor
    head: Head
    chunk: int


def _sum_over_chunks(
    loss: _Loss, *, hidden: Tensor, other: Tensor, head: Head, chunk: int
) -> Tensor:
    work = _Work(loss=loss, other=other.detach(), head=head, chunk=chunk)
    tensors = head.tensors
    if torch.is_grad_enabled() and any(each.requires_grad for each in (hidden, *tensors)):
        total: Tensor = _GradientsInForward.apply(  # type: ignore[no-untyped-call]
            work, hidden, *tensors
        )
        return total
    with torch.no_grad():
        return _run(work, hidden, [False] * (1 + len(tensors)))[0]


class _GradientsInForward(torch.autograd.Function):
    """Sums a loss and keeps its gradients at once; the backward only scales them."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, *tensors: Tensor) -> Tensor:  # noqa: ARG004
        total, gradients = _run(work, hidden, ctx.needs_input_grad[1:])
        ctx.save_for_backward(*gradients)
        return outcome(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(None if each is None else each * scale for each in ctx.saved_tensors)


def _run(work: _Work, hidden: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, Gradients]:
    """Give the sum and, where they are wanted, the gradients of hidden states and head."""
    by = _by_hand if isinstance(work.head, LinearHead) else _by_autograd
    return by(work, work.head, hidden, wanted)  # type: ignore[arg-type]


def _by_hand(
    work: _Work, head: LinearHead, hidden: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """Sum a loss over a linear head, with the gradients that are wanted.

    Products run in the dtype of autocast, or else in the head's; sums are in float32 at least.
    """
    kind = hidden.device.type
    mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        weight, bias = _cast(head.weight, mixed), _cast(head.bias, mixed)
        raw = functools.partial(F.linear, weight=weight, bias=bias)
        gradients: Gradients = [torch.empty_like(hidden) if wanted[0] else None]
        gradients += [
            torch.zeros_like(each, dtype=_wide_dtype(each.dtype)) if is_wanted else None
            for each, is_wanted in zip(head.tensors, wanted[1:], strict=True)
        ]
        total = torch.zeros((), dtype=_wide_dtype(hidden.dtype), device=hidden.device)
        for start in range(0, hidden.shape[0], work.chunk):
            rows = slice(start, start + work.chunk)
            given, target = _cast(hidden[rows], mixed), _cast(work.other[rows], mixed)
            # What logits are compared with: tokens, or the logits of a teacher.
            against = raw(target) if target.is_floating_point() else target
            value, slope = work.loss.of_piece(raw(given), against, head.cap, any(wanted))
            total += value
            if slope is not None:
                _add_gradients(gradients, slope=slope, given=given, weight=weight, rows=rows)
            # Else they would be held beside the logits of the next chunk.
            del against, slope
    return total, _narrowed(gradients, like=[hidden, *head.tensors])


def _add_gradients(
    gradients: Gradients, *, slope: Tensor, given: Tensor, weight: Tensor, rows: slice
) -> None:
    """Take a chunk's slope for the logits down to hidden states, weight and bias."""
    for_hidden, for_weight, *for_bias = gradients
    if for_hidden is not None:
        for_hidden[rows] = slope @ weight
    if for_weight is not None:
        for_weight += slope.T @ given
    for each in for_bias:
        if each is not None:
            each.add_(slope.sum(0, dtype=each.dtype))


def _by_autograd(
    work: _Work, head: ModuleHead, hidden: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """Sum a loss over any head; autograd goes back through each chunk before the next one."""
    total = torch.zeros((), dtype=_wide_dtype(hidden.dtype), device=hidden.device)
    pieces: list[Tensor] = []
    sums: Gradients = [None for _ in head.tensors]
    for start in range(0, hidden.shape[0], work.chunk):
        rows = slice(start, start + work.chunk)
        with torch.set_grad_enabled(any(wanted)):
            given = hidden[rows].detach().requires_grad_(any(wanted))
            value = work.loss.definition(given, work.other[rows], head)
        total += value.detach()
        if any(wanted):
            found = torch.autograd.grad(value, [given, *head.tensors], allow_unused=True)
            pieces.append(found[0])
            sums = [_added(before, each) for before, each in zip(sums, found[1:], strict=True)]
    for_hidden = torch.cat(pieces) if pieces and wanted[0] else None
    return total, _narrowed([for_hidden, *sums], like=[hidden, *head.tensors])


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """Add a chunk's gradient, None where a parameter was not used, to those before it."""
    if total is None or gradient is None:
        return total if gradient is None else gradient.to(_wide_dtype(gradient.dtype))
    return total + gradient


def _cross_entropy_of_piece(
    logits: Tensor, targets: Tensor, cap: float | None, differentiate: bool
) -> ValueAndSlope:
    targets = targets[:, None]
    rows = _fused(_cross_entropy_rows, [logits, targets])
    value, slope, slope_at_target = rows(logits, targets, cap, differentiate)
    at = targets.clamp(min=0)
    # Apart from the rest, which stays one pass over the logits.
    return value, slope if slope is None else slope.scatter_(1, at, slope_at_target)


def _cross_entropy_rows(
    logits: Tensor, targets: Tensor, cap: float | None, differentiate: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Give the loss, its slope as if no token were the target, and the slope at the target."""
    bent, bend = _bent(logits, cap)
    counts, at = targets != IGNORED, targets.clamp(min=0)
    logs = F.log_softmax(bent, dim=-1)
    picked = logs.gather(1, at)
    # p - 1 would be rounded to nothing where the model is sure.
    at_target = picked.expm1()
    slope = logs.exp() if differentiate else None
    if bend is not None and slope is not None:
        slope, at_target = slope * bend, at_target * bend.gather(1, at)
    narrow = None if slope is None else torch.where(counts, slope, 0.0).to(logits.dtype)
    at_target = torch.where(counts, at_target, 0.0).to(logits.dtype)
    return -torch.where(counts, picked, 0.0).sum(), narrow, at_target


def _divergence_of_piece(
    logits: Tensor, teacher_logits: Tensor, cap: float | None, differentiate: bool
) -> ValueAndSlope:
    rows = _fused(_divergence_rows, [logits, teacher_logits])
    found: ValueAndSlope = rows(logits, teacher_logits, cap, differentiate)
    return found


def _divergence_rows(
    logits: Tensor, teacher_logits: Tensor, cap: float | None, differentiate: bool
) -> ValueAndSlope:
    bent, bend = _bent(logits, cap)
    given = F.log_softmax(bent, dim=-1)
    wanted = F.log_softmax(_bent(teacher_logits, cap)[0], dim=-1)
    value = F.kl_div(given, wanted, log_target=True, reduction="sum")
    if not differentiate:
        return value, None
    slope = given.exp() - wanted.exp()
    return value, (slope if bend is None else slope * bend).to(logits.dtype)


def _bent(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Give capped logits in float32 at least, and their slope, or None where nothing is capped."""
    wide = _widened(logits)
    if cap is None:
        return wide, None
    bent = capped(wide, cap)
    return bent, 1.0 - (bent / cap) ** 2


def _fused(rows: Callable[..., Any], tensors: list[Tensor]) -> Callable[..., Any]:
    """Give the compiled form of what goes over logits, where there is a GPU to compile it for.

    Eagerly the float32 logits of a chunk would be written and read several times over. Few tokens
    are not worth it, and one form serves any other number of them.

    Args:
        rows: the function.
        tensors: what it will be called with, each with the tokens along its first axis.
    """
    form = fused(rows, device=tensors[0].device)
    if form is rows or tensors[0].shape[0] < WORTH_COMPILING:
        return rows
    for each in tensors:
        torch._dynamo.maybe_mark_dynamic(each, 0)
    return form


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor.dtype))


def _narrowed(gradients: Gradients, *, like: Sequence[Tensor]) -> Gradients:
    pairs = zip(gradients, like, strict=True)
    return [None if each is None else each.to(tensor.dtype) for each, tensor in pairs]


def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Any:
    """Cast what autocast would: floating tensors, where it is on."""
    is_cast = tensor is not None and dtype is not None and tensor.is_floating_point()
    return tensor.to(dtype) if is_cast and tensor is not None else tensor
