"""Fast reads of chosen chapters against the loops that define them."""

import math

import pytest
import torch

from memtx.ops.routed_read import (
    independent_read,
    independent_read_reference,
    joint_read,
    joint_read_reference,
)
from memtx.ops.segments import Segments

pytestmark = pytest.mark.shapes

READS = {
    "joint": (joint_read, joint_read_reference),
    "independent": (independent_read, independent_read_reference),
}
each_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


def segments_of(length, *, width, padded):
    """Segments of so many tokens; padding in front of the first row and behind the second."""
    real = torch.ones(2, length, dtype=torch.bool)
    if padded:
        real[0, : length // 3] = False
        real[1, length - length // 3 :] = False
    number = (real.long().cumsum(1) - 1).clamp(min=0) // width
    count = -(-length // width)
    return Segments(segment=number, real=real, count=count, width=width, regular=not padded)


def inputs(segments, *, heads, kv_heads, width, chosen, dtype):
    """Query, keys, values and log weights, with gradients, and a choice among 7 chapters."""
    batch, length = segments.segment.shape
    choice = torch.rand(batch, segments.count, 7).argsort(-1)[..., :chosen]
    weights = torch.randn(batch, segments.count, chosen).log_softmax(-1)
    tensors = [
        torch.randn(batch, length, heads, width),
        torch.randn(7, 4, kv_heads, width),
        torch.randn(7, 4, kv_heads, width),
    ]
    return [*(t.to(dtype).requires_grad_() for t in tensors), choice, weights.requires_grad_()]


def with_gradients(read, arguments, upstream):
    wanted = [each for each in arguments if torch.is_tensor(each) and each.requires_grad]
    output = read(*arguments)
    return [output.detach(), *torch.autograd.grad((output.float() * upstream).sum(), wanted)]


SIZES = [  # length, width of a segment, padded, heads, kv_heads, width of a head, chosen
    (1, 1, False, 4, 2, 3, 3),
    (2, 3, False, 4, 4, 8, 1),
    (3, 3, False, 4, 2, 5, 7),
    (4, 3, False, 2, 1, 6, 2),
    (11, 4, True, 4, 2, 7, 3),
    (13, 1, True, 4, 1, 16, 2),
]


@each_read
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_gradients_are_those_of_the_reference(read, size):
    length, segment, padded, heads, kv_heads, width, chosen = size
    segments = segments_of(length, width=segment, padded=padded)
    arguments = inputs(
        segments, heads=heads, kv_heads=kv_heads, width=width, chosen=chosen, dtype=torch.float32
    )
    upstream = torch.randn(2, length, heads, width)
    fast, reference = read
    given = with_gradients(fast, [*arguments, segments, 0.0], upstream)
    wanted = with_gradients(reference, [*arguments, segments], upstream)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@each_read
def test_bfloat16_stays_near_the_reference_in_float32(read):
    segments = segments_of(9, width=4, padded=True)
    arguments = inputs(segments, heads=4, kv_heads=2, width=8, chosen=3, dtype=torch.bfloat16)
    upstream = torch.randn(2, 9, 4, 8)
    fast, reference = read
    given = with_gradients(fast, [*arguments, segments, 0.0], upstream)
    assert [each.dtype for each in given[:4]] == [torch.bfloat16] * 4
    exact = [
        each.detach().float().requires_grad_()
        if torch.is_tensor(each) and each.requires_grad
        else each
        for each in arguments
    ]
    wanted = with_gradients(reference, [*exact, segments], upstream)
    for one, other in zip(given, wanted, strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert error < 0.015


def test_a_weight_far_from_one_is_kept_in_bfloat16():
    """The bias rides on two features: one alone would round this one by 2%."""
    segments = segments_of(1, width=1, padded=False)
    query, key = torch.zeros(2, 1, 1, 32), torch.zeros(2, 1, 1, 32)
    value = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 1, 32)
    far = -45.125 / 32**0.5
    log_weight = torch.tensor([0.0, far]).expand(2, 1, 2)
    half = [each.to(torch.bfloat16) for each in (query, key, value)]
    given = joint_read(*half, torch.arange(2).expand(2, 1, 2), log_weight, segments, 0.0)
    wanted = math.exp(far) / (1 + math.exp(far))
    assert given.float().flatten().tolist() == pytest.approx([wanted] * 64, rel=5e-3)


@each_read
def test_one_chapter_is_plain_attention(read):
    segments = segments_of(5, width=2, padded=False)
    query, key, value, choice, _ = inputs(
        segments, heads=2, kv_heads=2, width=4, chosen=1, dtype=torch.float32
    )
    weights = torch.zeros(choice.shape)
    given = read[0](query, key, value, choice, weights, segments, 0.0)
    for row in range(2):
        for at in range(5):
            chapter = int(choice[row, at // 2, 0])
            scores = torch.einsum("hw,thw->ht", query[row, at], key[chapter]) / 2.0
            alone = torch.einsum("ht,thw->hw", scores.softmax(-1), value[chapter])
            torch.testing.assert_close(given[row, at], alone)


@each_read
def test_dropout_drops_weights_and_keeps_the_mean(read):
    segments = segments_of(4, width=2, padded=False)
    arguments = inputs(segments, heads=2, kv_heads=2, width=4, chosen=2, dtype=torch.float32)
    with torch.no_grad():
        plain = read[0](*arguments, segments, 0.0)
        drawn = torch.stack([read[0](*arguments, segments, 0.3) for _ in range(800)])
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn.mean(0) - plain).abs().max() < 0.25
    assert (drawn[0] - plain).abs().max() > 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_read
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gpu_stays_near_the_reference(read, padded, dtype):
    segments = segments_of(50, width=16, padded=padded)
    arguments = inputs(segments, heads=4, kv_heads=2, width=64, chosen=3, dtype=dtype)
    upstream = torch.randn(2, 50, 4, 64)
    there = [each.detach().cuda().requires_grad_(each.requires_grad) for each in arguments]
    moved = Segments(
        segment=segments.segment.cuda(),
        real=segments.real.cuda(),
        count=segments.count,
        width=segments.width,
        regular=segments.regular,
    )
    given = with_gradients(read[0], [*there, moved, 0.0], upstream.cuda())
    exact = [
        each.detach().double().requires_grad_() if each.requires_grad else each
        for each in arguments
    ]
    wanted = with_gradients(read[1], [*exact, segments], upstream)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for one, other in zip(given, wanted, strict=True):
        assert (one.cpu().double() - other).norm() < tolerance * other.norm()


@each_read
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_chapters_in_the_order_of_the_choices_need_no_choice(read, size):
    length, segment, padded, heads, kv_heads, width, chosen = size
    segments = segments_of(length, width=segment, padded=padded)
    query, key, value, choice, weights = inputs(
        segments, heads=heads, kv_heads=kv_heads, width=width, chosen=chosen, dtype=torch.float32
    )
    upstream = torch.randn_like(query)

    def named(q, k, v, w):
        return read[0](q, k, v, choice, w, segments, 0.0)

    def in_order(q, k, v, w):
        laid = (each[choice.flatten()] for each in (k, v))
        return read[0](q, *laid, None, w, segments, 0.0)

    wanted = with_gradients(named, (query, key, value, weights), upstream)
    given = with_gradients(in_order, (query, key, value, weights), upstream)
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
