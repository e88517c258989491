"""The fused read equals its definition: forward and all gradients."""

import pytest
import torch

from memtx.ops.memory_read import (
    dense_read,
    dense_read_reference,
    read_by_heads,
    read_by_products,
    read_folded,
)

WIDTH = 8


def inputs(*, batch, length, heads, kv_heads, memory):
    query = torch.randn(batch, length, heads, WIDTH)
    key, value = torch.randn(2, memory, kv_heads, WIDTH)
    return [tensor.requires_grad_() for tensor in (query, key.detach(), value.detach())]


def outputs_and_gradients(read, tensors):
    """The output of a read, and the gradients under one fixed direction of the output."""
    out = read(*tensors)
    direction = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, tensors, direction)]


def by_products(query, key, value, dropout):
    return read_by_products(query, key, value)


@pytest.fixture(
    params=[dense_read, read_by_heads, read_folded, by_products], ids=lambda read: read.__name__
)
def fused(request):
    return lambda query, key, value: request.param(query, key, value, 0.0)


@pytest.mark.shapes
@pytest.mark.parametrize("memory", [1, 17])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (3, 5)])
def test_float32_equals_reference(fused, batch, length, kv_heads, memory):
    tensors = inputs(batch=batch, length=length, heads=4, kv_heads=kv_heads, memory=memory)
    wanted = outputs_and_gradients(dense_read_reference, tensors)
    given = outputs_and_gradients(fused, tensors)
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.shapes
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_bfloat16_is_near_float32_reference(fused, kv_heads):
    tensors = inputs(batch=3, length=5, heads=4, kv_heads=kv_heads, memory=17)
    wanted = outputs_and_gradients(dense_read_reference, tensors)
    halves = [t.detach().to(torch.bfloat16).requires_grad_() for t in tensors]
    given = outputs_and_gradients(fused, halves)
    for mine, theirs in zip(given, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - theirs).norm() < 0.03 * theirs.norm() + 1e-3


def test_reference_by_hand():
    """One query of width 1 against two memory tokens: a softmax of two numbers."""
    query, key = torch.tensor([[[[2.0]]]]), torch.tensor([[[0.0]], [[1.0]]])
    value = torch.tensor([[[10.0]], [[20.0]]])
    weight = torch.sigmoid(torch.tensor(2.0))
    wanted = 10.0 * (1 - weight) + 20.0 * weight
    torch.testing.assert_close(dense_read_reference(query, key, value).squeeze(), wanted)


def test_query_heads_read_the_head_of_their_group(fused):
    query, key, value = inputs(batch=1, length=2, heads=4, kv_heads=2, memory=5)
    before = fused(query, key, value)
    with torch.no_grad():
        value[:, 1] += 1.0
    changed = (fused(query, key, value) - before).abs().amax(dim=(0, 1, 3)) > 0.5
    assert changed.tolist() == [False, False, True, True]


def test_dropout_drops_weights_and_keeps_the_mean():
    query, key, value = inputs(batch=1, length=1, heads=1, kv_heads=1, memory=64)
    with torch.no_grad():
        key.zero_()
        value.fill_(1.0)
    reads = torch.stack([dense_read(query, key, value, 0.5).mean() for _ in range(200)])
    assert reads.std() > 0.05
    assert abs(reads.mean() - 1.0) < 0.05
