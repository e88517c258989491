"""Weights of reads: with them, values add up to what the reference reads."""

import pytest
import torch

from memtx.ops.memory_read import dense_read_reference
from memtx.ops.read_weights import dense_weights, independent_weights, joint_weights
from memtx.ops.routed_read import independent_read_reference, joint_read_reference
from memtx.ops.segments import Segments


@pytest.mark.shapes
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_dense_weights_read_what_the_reference_reads(kv_heads):
    query = torch.randn(2, 5, 4, 8)
    key, value = torch.randn(9, kv_heads, 8), torch.randn(9, kv_heads, 8)
    weights = dense_weights(query, key)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, 4))
    values = value.repeat_interleave(4 // kv_heads, dim=1)
    read = torch.einsum("blhm,mhw->blhw", weights, values)
    torch.testing.assert_close(read, dense_read_reference(query, key, value))


CASES = {
    "joint": (joint_weights, joint_read_reference),
    "independent": (independent_weights, independent_read_reference),
}


def routed_case(kv_heads):
    segment = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 0, 1, 2]])
    real = torch.tensor([[True] * 5, [False, True, True, True, True]])
    segments = Segments(segment=segment, real=real, count=3, width=3, regular=False)
    query = torch.randn(2, 5, 4, 8)
    key, value = torch.randn(6, 3, kv_heads, 8), torch.randn(6, 3, kv_heads, 8)
    choice = torch.rand(2, 3, 6).argsort(-1)[..., :2]
    log_weight = torch.randn(2, 3, 2).log_softmax(-1)
    return query, key, value, choice, log_weight, segments


@pytest.mark.shapes
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_routed_weights_read_what_the_reference_reads(name, kv_heads):
    weigh, reference = CASES[name]
    query, key, value, choice, log_weight, segments = routed_case(kv_heads)
    weights = weigh(query, key, choice, log_weight, segments)
    sums = segments.real[..., None].float().expand(-1, -1, 4)
    torch.testing.assert_close(weights.sum((-1, -2)), sums)
    rows = torch.arange(2)[:, None]
    values = value[choice[rows, segments.segment]].repeat_interleave(4 // kv_heads, dim=-2)
    read = torch.einsum("blhct,blcthw->blhw", weights, values)
    torch.testing.assert_close(read, reference(query, key, value, choice, log_weight, segments))


def test_autocast_and_narrow_numbers_leave_the_weights_exact():
    query, key = torch.randn(1, 3, 4, 8).bfloat16(), torch.randn(9, 2, 8).bfloat16()
    exact = dense_weights(query.float(), key.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dense_weights(query, key), exact)
