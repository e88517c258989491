"""Dense reading: what it computes, what it leaves alone, and sizes that do not meet."""

import re

import pytest
import torch

from memtx import MemoryCrossAttention
from memtx.ops.memory_read import dense_read_reference
from tests.parts import bank_of, linear, random_like, read_arguments, reader, recall

DIM = 8


def with_changes(changes):
    return MemoryCrossAttention(**(read_arguments(DIM) | changes))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 1), (4, 2), (4, 4), (1, 1)])
def test_equals_the_mathematics(num_heads, num_kv_heads):
    """softmax(Q K^T / sqrt(e)) V W_o, with a bank of another width than the stream."""
    kv = DIM // num_heads * num_kv_heads
    part = with_changes(
        {
            "bank": bank_of(7, 5),
            "k_proj": linear(5, kv),
            "v_proj": linear(5, kv),
            "o_proj": linear(DIM, DIM),
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
        }
    )
    x = torch.randn(2, 3, DIM)
    query = (x @ part.q_proj.weight.T).view(2, 3, num_heads, -1)
    key = (part.bank.tokens @ part.k_proj.weight.T).view(7, num_kv_heads, -1)
    value = (part.bank.tokens @ part.v_proj.weight.T).view(7, num_kv_heads, -1)
    wanted = dense_read_reference(query, key, value).flatten(-2) @ part.o_proj.weight.T
    torch.testing.assert_close(part(x), wanted)
    direction, parameters = torch.randn_like(wanted), list(part.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(part(x), parameters, direction),
        torch.autograd.grad(wanted, parameters, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_zero_o_proj_gives_nothing_but_a_gradient():
    part = reader(bank_of(7, DIM), DIM)
    out = part(torch.randn(2, 3, DIM))
    assert out.abs().max() == 0.0
    (out * torch.randn_like(out)).sum().backward()
    assert part.o_proj.weight.grad.abs().max() > 0.0


def test_dropout_acts_in_training_only():
    # One argument is said: the others of the same seed are equal in both.
    torch.manual_seed(3)
    part = random_like(with_changes({"dropout": 0.5}))
    torch.manual_seed(3)
    without = random_like(with_changes({"dropout": 0.0}))
    x = torch.randn(2, 3, DIM)
    assert torch.equal(part.eval()(x), without(x))
    assert torch.equal(part(x), part(x))
    part.train()
    assert not torch.allclose(part(x), without(x), atol=1e-2)
    assert not torch.allclose(part(x), part(x), atol=1e-2)
    assert torch.equal(without.train()(x), without.eval()(x))


def test_shared_bank_gets_the_sum_of_its_readers_gradients():
    bank, x = bank_of(7, DIM), torch.randn(2, 3, DIM)
    first, second = (random_like(reader(bank, DIM)) for _ in range(2))
    alone = []
    for part in (first, second):
        (gradient,) = torch.autograd.grad(part(x).square().sum(), [bank.tokens])
        alone.append(gradient)
        assert gradient.abs().max() > 0.0
    (first(x).square().sum() + second(x).square().sum()).backward()
    torch.testing.assert_close(bank.tokens.grad, alone[0] + alone[1])


def test_positions_and_rows_do_not_see_each_other():
    """Padding is one more position, so what it holds is irrelevant to the others."""
    part, x = random_like(recall(bank_of(7, DIM), DIM)), torch.randn(2, 5, DIM)
    whole = part(x)
    torch.testing.assert_close(part(x[1:, 2:4]), whole[1:, 2:4])
    padded = x.clone()
    padded[0, 3:] = 100.0
    torch.testing.assert_close(part(padded)[0, :3], whole[0, :3])
    torch.testing.assert_close(part(padded)[1], whole[1])


def test_order_of_memory_tokens_is_irrelevant():
    part, x = random_like(reader(bank_of(7, DIM), DIM)), torch.randn(2, 3, DIM)
    before = part(x)
    with torch.no_grad():
        part.bank.tokens.copy_(part.bank.tokens.flip(0))
    torch.testing.assert_close(part(x), before)


REFUSED = {
    "kv heads that do not divide": (
        {"num_kv_heads": 3},
        "num_heads must be a multiple of num_kv_heads, got num_heads=4, num_kv_heads=3;",
    ),
    "more kv heads than heads": (
        {"num_kv_heads": 8},
        "num_heads must be a multiple of num_kv_heads, got num_heads=4, num_kv_heads=8;",
    ),
    "heads and width of queries": (
        {"q_proj": linear(DIM, 6)},
        "q_proj.out_features must be a multiple of its number of heads, "
        "got q_proj.out_features=6, heads=4;",
    ),
    "heads and width of keys": (
        {"k_proj": linear(DIM, 5)},
        "k_proj.out_features must be a multiple of its number of heads, "
        "got k_proj.out_features=5, heads=2;",
    ),
    "query and key heads": (
        {"k_proj": linear(DIM, 8)},
        "query heads and key heads must have the same width, got "
        "q_proj.out_features // num_heads=2, k_proj.out_features // num_kv_heads=4;",
    ),
    "bank and k_proj": (
        {"k_proj": linear(6, 4)},
        "k_proj must read the bank's width, got k_proj.in_features=6, bank.dim=8;",
    ),
    "bank and v_proj": (
        {"v_proj": linear(6, 4)},
        "v_proj must read the bank's width, got v_proj.in_features=6, bank.dim=8;",
    ),
    "another bank": (
        {"bank": bank_of(7, 5)},
        "k_proj must read the bank's width, got k_proj.in_features=8, bank.dim=5;",
    ),
    "v_proj and k_proj": (
        {"v_proj": linear(DIM, 8)},
        "v_proj.out_features must equal k_proj.out_features, "
        "got v_proj.out_features=8, k_proj.out_features=4;",
    ),
    "o_proj and q_proj": (
        {"o_proj": linear(4, DIM)},
        "o_proj.in_features must equal q_proj.out_features, "
        "got o_proj.in_features=4, q_proj.out_features=8;",
    ),
    "o_proj and the stream": (
        {"o_proj": linear(DIM, 6)},
        "o_proj must write the width that q_proj reads, "
        "got o_proj.out_features=6, q_proj.in_features=8;",
    ),
    "dropout of 1": ({"dropout": 1.0}, "dropout must lie in [0, 1), got dropout=1.0;"),
    "negative dropout": ({"dropout": -0.1}, "dropout must lie in [0, 1), got dropout=-0.1;"),
}


@pytest.mark.parametrize(("changes", "text"), REFUSED.values(), ids=REFUSED)
def test_sizes_that_do_not_meet(changes, text):
    with pytest.raises(ValueError, match=f"^MemoryCrossAttention: {re.escape(text)}"):
        with_changes(changes)


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["num_heads", "num_kv_heads"])
def test_counts_that_are_refused(name, value):
    text = f"MemoryCrossAttention: {name} must be an integer of at least 1, got {name}={value!r};"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        with_changes({name: value})
