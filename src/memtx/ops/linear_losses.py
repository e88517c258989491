"""Losses over a large vocabulary that never hold all its logits at once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


def cross_entropy_reference(
    hidden: Float[Tensor, "tokens dim"], targets: Int[Tensor, " tokens"], head: Head
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of all tokens from their logits: the definition.

    Args:
        hidden: final hidden states of the tokens that count.
        targets: the token each must predict.
        head: gives logits `[tokens, vocabulary]` of hidden states.
    """
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


def kl_divergence_reference(
    hidden: Float[Tensor, "tokens dim"], teacher: Float[Tensor, "tokens dim"], head: Head
) -> Float[Tensor, ""]:
    """Sum KL(teacher || student) of all tokens from their logits: the definition.

    Args:
        hidden: final hidden states of the student.
        teacher: final hidden states of the teacher, under the same head.
        head: gives logits `[tokens, vocabulary]` of hidden states.
    """
    wanted = F.log_softmax(head(teacher).float(), dim=-1)
    given = F.log_softmax(head(hidden).float(), dim=-1)
    return F.kl_div(given, wanted, log_target=True, reduction="sum")


def chunked_cross_entropy(
    hidden: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    chunk: int,
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of all tokens, holding the logits of `chunk` tokens at a time.

    Args:
        hidden: final hidden states of the tokens that count.
        targets: the token each must predict.
        head: gives logits `[tokens, vocabulary]` of hidden states.
        chunk: how many tokens' logits to hold; those of the backward pass are made again.
    """
    return _chunked(cross_entropy_reference, hidden=hidden, other=targets, head=head, chunk=chunk)


def chunked_kl_divergence(
    hidden: Float[Tensor, "tokens dim"],
    teacher: Float[Tensor, "tokens dim"],
    head: Head,
    chunk: int,
) -> Float[Tensor, ""]:
    """Sum KL(teacher || student) of all tokens, holding the logits of `chunk` tokens at a time.

    Args:
        hidden: final hidden states of the student.
        teacher: final hidden states of the teacher, under the same head.
        head: gives logits `[tokens, vocabulary]` of hidden states.
        chunk: how many tokens' logits to hold; those of the backward pass are made again.
    """
    return _chunked(kl_divergence_reference, hidden=hidden, other=teacher, head=head, chunk=chunk)


def _chunked(
    loss: Callable[[Tensor, Tensor, Head], Tensor],
    *,
    hidden: Tensor,
    other: Tensor,
    head: Head,
    chunk: int,
) -> Tensor:
    if hidden.shape[0] <= chunk:
        return loss(hidden, other, head)
    total = torch.zeros((), device=hidden.device)
    for piece, target in zip(hidden.split(chunk), other.split(chunk), strict=True):
        total = total + checkpoint(loss, piece, target, head, use_reentrant=False)
    return total
