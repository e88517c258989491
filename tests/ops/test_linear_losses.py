"""Losses over chunks of tokens equal their definitions: forward and all gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from memtx.ops.linear_losses import (
    chunked_cross_entropy,
    chunked_kl_divergence,
    cross_entropy_reference,
    kl_divergence_reference,
)
from tests.parts import linear

TOKENS, DIM, VOCABULARY = 12, 6, 19
# One token at a time, exact divisors, a rest, exactly all, and more than there are.
CHUNKS = [1, 4, 5, 12, 100]

LOSSES = {
    "cross-entropy": (chunked_cross_entropy, cross_entropy_reference),
    "divergence": (chunked_kl_divergence, kl_divergence_reference),
}


@pytest.fixture(params=LOSSES)
def loss(request):
    return request.param


def other_of(loss, tokens):
    if loss == "cross-entropy":
        return torch.randint(VOCABULARY, (tokens,))
    return torch.randn(tokens, DIM, requires_grad=True)


def value_and_gradients(function, hidden, other, head):
    """The loss, and its gradients for the hidden states, the teacher's if any, and the head."""
    value = function(hidden, other, head)
    wanted = [t for t in (hidden, other, head.weight) if t.requires_grad]
    return [value, *torch.autograd.grad(3.0 * value, wanted)]


def in_chunks(chunked, chunk):
    return lambda hidden, other, head: chunked(hidden, other, head, chunk)


@pytest.mark.shapes
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("tokens", [TOKENS, 7, 1])
def test_float32_equals_reference(loss, tokens, chunk):
    chunked, reference = LOSSES[loss]
    hidden = torch.randn(tokens, DIM, requires_grad=True)
    other, head = other_of(loss, tokens), linear(DIM, VOCABULARY)
    wanted = value_and_gradients(reference, hidden, other, head)
    given = value_and_gradients(in_chunks(chunked, chunk), hidden, other, head)
    assert len(wanted) == (3 if loss == "cross-entropy" else 4)
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.shapes
@pytest.mark.parametrize("chunk", [5, 100])
def test_bfloat16_is_near_float32_reference(loss, chunk):
    chunked, reference = LOSSES[loss]
    hidden = torch.randn(TOKENS, DIM, requires_grad=True)
    other, head = other_of(loss, TOKENS), linear(DIM, VOCABULARY)
    wanted = value_and_gradients(reference, hidden, other, head)
    half = hidden.detach().to(torch.bfloat16).requires_grad_()
    if other.is_floating_point():
        other = other.detach().to(torch.bfloat16).requires_grad_()
    head = head.to(torch.bfloat16)
    given = value_and_gradients(in_chunks(chunked, chunk), half, other, head)
    assert given[0].dtype == torch.float32  # sums of many tokens need it
    for mine, theirs in zip(given, wanted, strict=True):
        assert (mine.float() - theirs).norm() < 0.05 * theirs.norm()


def test_references_by_hand(loss):
    hidden, head = torch.randn(3, DIM), linear(DIM, VOCABULARY)
    other = other_of(loss, 3)
    logs = F.log_softmax(head(hidden), dim=-1)
    if loss == "cross-entropy":
        wanted = -sum(logs[i, target] for i, target in enumerate(other.tolist()))
    else:
        teacher = F.softmax(head(other), dim=-1)
        wanted = (teacher * (teacher.log() - logs)).sum()
    torch.testing.assert_close(LOSSES[loss][1](hidden, other, head), wanted)


def test_divergence_from_itself_is_zero():
    hidden, head = torch.randn(TOKENS, DIM), linear(DIM, VOCABULARY)
    assert abs(chunked_kl_divergence(hidden, hidden, head, 5)) < 1e-5


def test_no_tokens_give_zero(loss):
    other = other_of(loss, TOKENS)[:0]
    assert LOSSES[loss][0](torch.randn(0, DIM), other, linear(DIM, VOCABULARY), 5) == 0.0


class LargestLogits(TorchDispatchMode):
    """Records how many rows of logits any operation gave at once, backward passes included."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args, kwargs):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == VOCABULARY:
            self.rows = max(self.rows, out.shape[0])
        return out


def test_never_more_logits_than_a_chunk(loss):
    head = linear(DIM, VOCABULARY)
    hidden = torch.randn(20, DIM, requires_grad=True)
    # The transposed weight has as many columns as logits, so the chunk is the larger of the two.
    with LargestLogits() as largest:
        LOSSES[loss][0](hidden, other_of(loss, 20), head, DIM + 1).backward()
    assert largest.rows == DIM + 1
