"""Heads of length 1, and heads of a learned length: what a reader makes of them."""

import re

import pytest
import torch

from memtx import MemoryCrossAttention, ScaledHeads, UnitHeads
from memtx.ops.memory_read import dense_read_reference
from tests.parts import linear, random_like, read_arguments

DIM, HEADS, EPS = 8, 2, 1e-6


def unit(out_features):
    return UnitHeads(projection=linear(DIM, out_features), num_heads=HEADS, eps=EPS)


def test_scores_are_cosines_times_the_scale():
    """Written out by hand: softmax of s cos(q, k), whatever the lengths."""
    width, sharpness = DIM // HEADS, 7.0
    part = MemoryCrossAttention(
        **read_arguments(DIM)
        | {
            "q_proj": ScaledHeads(
                projection=unit(DIM), num_heads=HEADS, scale=sharpness * width**0.5
            ),
            "k_proj": unit(DIM),
            "v_proj": linear(DIM, DIM),
            "o_proj": linear(DIM, DIM),
            "num_heads": HEADS,
            "num_kv_heads": HEADS,
        }
    )
    x = torch.randn(2, 3, DIM)
    query = (x @ part.q_proj.projection.projection.weight.T).unflatten(-1, (HEADS, -1))
    key = (part.bank.tokens @ part.k_proj.projection.weight.T).unflatten(-1, (HEADS, -1))
    value = (part.bank.tokens @ part.v_proj.weight.T).unflatten(-1, (HEADS, -1))
    cosines = torch.nn.functional.cosine_similarity(
        query[:, :, None], key[None, None], dim=-1, eps=EPS
    )
    weights = torch.softmax(sharpness * cosines, dim=2)
    wanted = torch.einsum("blmh,mhe->blhe", weights, value).flatten(-2) @ part.o_proj.weight.T
    torch.testing.assert_close(part(x), wanted)
    # Longer tokens and streams change nothing.
    torch.testing.assert_close(part.q_proj(9.0 * x), part.q_proj(x))


def test_a_plain_projection_with_a_scale_has_scores_so_many_times_larger():
    inner = linear(DIM, DIM)
    scaled = ScaledHeads(projection=inner, num_heads=HEADS, scale=4.0)
    x, key, value = torch.randn(2, 3, DIM), torch.randn(7, HEADS, 4), torch.randn(7, HEADS, 4)
    mine = dense_read_reference(scaled(x).unflatten(-1, (HEADS, -1)), key, value)
    wanted = dense_read_reference(inner(x).unflatten(-1, (HEADS, -1)), 4.0 * key, value)
    torch.testing.assert_close(mine, wanted)


def test_zeros_stay_zeros_and_have_a_finite_gradient():
    part, x = unit(DIM), torch.zeros(3, DIM, requires_grad=True)
    out = part(x)
    assert out.abs().max() == 0.0
    (gradient,) = torch.autograd.grad(out.sum(), [x])
    assert gradient.isfinite().all()


def test_the_factor_of_each_head_learns_and_stays_positive():
    part = random_like(ScaledHeads(projection=linear(DIM, DIM), num_heads=HEADS, scale=2.0))
    x = torch.randn(3, DIM)
    part(x)[:, : DIM // HEADS].sum().backward()
    assert part.log_scale.grad[0] != 0.0
    assert part.log_scale.grad[1] == 0.0
    with torch.no_grad():
        part.log_scale.fill_(-50.0)
    assert (part.log_scale.exp() > 0.0).all()


def test_half_precision_comes_back_in_half_and_is_measured_in_full():
    part = unit(DIM).to(torch.bfloat16)
    out = part(torch.randn(5, DIM, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    lengths = out.float().unflatten(-1, (HEADS, -1)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0.0, atol=8e-3)


@pytest.mark.parametrize(
    ("cls", "changes", "value"),
    [
        (UnitHeads, {"num_heads": 3}, "projection.out_features=8, num_heads=3"),
        (UnitHeads, {"num_heads": 0}, "num_heads=0"),
        (UnitHeads, {"eps": 0.0}, "eps=0.0"),
        (ScaledHeads, {"num_heads": 5}, "projection.out_features=8, num_heads=5"),
        (ScaledHeads, {"scale": -1.0}, "scale=-1.0"),
        (ScaledHeads, {"scale": float("inf")}, "scale=inf"),
    ],
)
def test_values_that_are_refused(cls, changes, value):
    own = {"eps": EPS} if cls is UnitHeads else {"scale": 1.0}
    with pytest.raises(ValueError, match=re.escape(f"got {value}")):
        cls(**{"projection": linear(DIM, DIM), "num_heads": HEADS} | own | changes)
