"""The chunked form equals the recurrence: outputs, states and all gradients."""

import time

import pytest
import torch

from memtx.ops.tensor_memory import (
    chunk_for,
    tensor_memory,
    tensor_memory_reference,
    tensor_memory_step,
)
from tests.ops.tensor_inputs import (
    DELTA,
    FREE,
    PLAIN,
    RULES,
    STILL,
    by_chunk,
    by_token,
    distances,
    named_rules,
    outcome,
    rules,
    tokens,
)

LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 100, 257]


def compared(*, name, length, chunk, dtype, real, document, dim):
    inputs = tokens(batch=2, length=length, dim=dim, dtype=dtype)
    rule = named_rules(name)
    wanted = outcome(by_token(rule, real, document), inputs)
    given = outcome(by_chunk(rule, real, document, chunk), inputs)
    for mine, theirs in zip(given, wanted, strict=True):
        assert mine.dtype == theirs.dtype
    return distances(given, wanted)


def whole_rows(*, name, length, chunk, dtype, dim):
    return compared(
        name=name, length=length, chunk=chunk, dtype=dtype, real=None, document=None, dim=dim
    )


def float_tokens(batch, length):
    return tokens(batch=batch, length=length, dim=8, dtype=torch.float32)


@pytest.mark.shapes
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", RULES)
def test_float32_equals_recurrence(name, length):
    found = whole_rows(name=name, length=length, chunk=16, dtype=torch.float32, dim=8)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("chunk", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("name", RULES)
def test_every_chunk_size_equals_recurrence(name, chunk):
    found = whole_rows(name=name, length=257, chunk=chunk, dtype=torch.float32, dim=8)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("name", ["plain", "each head its own"])
def test_long_sequence_equals_recurrence(name):
    """Over several groups of chunks, of which each is one matrix product."""
    found = whole_rows(name=name, length=4_097, chunk=16, dtype=torch.float32, dim=4)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("length", [1, 65, 257])
@pytest.mark.parametrize("name", RULES)
def test_bfloat16_is_near_recurrence(name, length):
    found = whole_rows(name=name, length=length, chunk=64, dtype=torch.bfloat16, dim=16)
    assert max(found.values()) < 2e-2, found


def test_bfloat16_where_little_is_left_of_all_but_one_token():
    """What is read is nearly one token's value, and its gradients the little it differs by."""
    inputs = tokens(batch=2, length=100, dim=16, dtype=torch.bfloat16)
    rule = rules(delta=PLAIN, decay=[0.1, 0.3], bound=FREE)
    wanted = outcome(by_token(rule, None, None), inputs)
    found = distances(outcome(by_chunk(rule, None, None, 64), inputs), wanted)
    assert max(found.values()) < 2e-2, found


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("with_padding", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_padding_and_documents_equal_recurrence(name, with_padding, with_documents):
    real = torch.rand(2, 77) < 0.7 if with_padding else None
    document = (torch.rand(2, 77) < 0.05).long().cumsum(dim=1) if with_documents else None
    found = compared(
        name=name, length=77, chunk=16, dtype=torch.float64, real=real, document=document, dim=8
    )
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("name", RULES)
def test_from_nothing_equals_recurrence(name):
    """Without a state given, and without one asked for."""
    query, key, value = tokens(batch=2, length=100, dim=8, dtype=torch.float64)[:3]
    rule, nothing = named_rules(name), [None] * 4

    def by_chunks(q, k, v):
        read, memory, norm = tensor_memory(q, k, v, rule, *nothing, 16, False)
        assert memory is None
        assert norm is None
        return (read,)

    def by_tokens(q, k, v):
        return tensor_memory_reference(q, k, v, rule, *nothing)[:1]

    inputs = [query, key, value]
    given, wanted = outcome(by_chunks, inputs), outcome(by_tokens, inputs)
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_of_the_written_alone():
    """The state behind the sequence has a gradient where what was read is not used."""
    inputs = tokens(batch=1, length=20, dim=8, dtype=torch.float64)
    rule = rules(delta=DELTA, decay=STILL, bound=FREE)
    found = []
    for call in (by_token(rule, None, None), by_chunk(rule, None, None, 16)):
        _, memory, _ = call(*inputs)
        found.append(torch.autograd.grad(memory.square().sum(), inputs[1:]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_reference_by_hand():
    """Two tokens of width 1: features of 0 are 1, so the state is a sum and a count."""
    zeros = torch.zeros(1, 3, 1, 1)
    value = torch.tensor([2.0, 4.0, 9.0]).view(1, 3, 1, 1)

    def read(delta, decay):
        rule = rules(delta=[delta], decay=[decay], bound=FREE)
        nothing = [None] * 4
        return tensor_memory_reference(zeros, zeros, value, rule, *nothing)

    plain, memory, norm = read(0.0, 1.0)
    assert plain.flatten().tolist() == pytest.approx([0.0, 2.0, 3.0], abs=1e-4)
    assert (memory.item(), norm.item()) == pytest.approx((15.0, 3.0))
    # u = 2, then 4 - 2 / 1, then 9 - 4 / 2
    _, memory, norm = read(1.0, 1.0)
    assert (memory.item(), norm.item()) == pytest.approx((2.0 + 2.0 + 7.0, 3.0), abs=1e-4)
    # S = 2, then 1 + 4, then 2.5 + 9; z = 1, 1.5, 1.75
    decaying, memory, norm = read(0.0, 0.5)
    assert decaying.flatten().tolist() == pytest.approx([0.0, 2.0, 5.0 / 1.5], abs=1e-4)
    assert (memory.item(), norm.item()) == pytest.approx((11.5, 1.75))


@pytest.mark.shapes
@pytest.mark.parametrize("name", RULES)
def test_steps_equal_one_call(name):
    query, key, value, memory, norm = (x.detach() for x in float_tokens(2, 20))
    rule = named_rules(name)
    real = torch.rand(2, 20) < 0.8
    wanted = tensor_memory(query, key, value, rule, memory, norm, real, None, 16, True)
    reads = []
    for t in range(20):
        at = slice(t, t + 1)
        read, memory, norm = tensor_memory_step(
            query[:, at], key[:, at], value[:, at], rule, memory, norm, real[:, at]
        )
        reads.append(read)
    for mine, theirs in zip((torch.cat(reads, dim=1), memory, norm), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cuts", [[5, 15], [16, 4], [1, 1, 18], [10, 0, 10][::2]])
@pytest.mark.parametrize("name", RULES)
def test_one_call_equals_any_split(name, cuts):
    query, key, value, memory, norm = (x.detach() for x in float_tokens(2, 20))
    rule = named_rules(name)
    wanted = tensor_memory(query, key, value, rule, memory, norm, None, None, 16, True)
    reads = []
    for q, k, v in zip(*(x.split(cuts, dim=1) for x in (query, key, value)), strict=True):
        read, memory, norm = tensor_memory(q, k, v, rule, memory, norm, None, None, 16, True)
        reads.append(read)
    for mine, theirs in zip((torch.cat(reads, dim=1), memory, norm), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "dim", "wanted"),
    [(1, 64, 16), (16, 64, 16), (17, 64, 32), (4_096, 64, 64), (4_096, 128, 128), (100, 128, 128)],
)
def test_chunk_follows_length_and_dim(length, dim, wanted):
    assert chunk_for(length, dim) == wanted


def test_faster_than_the_recurrence():
    """At length 2,048 on a CPU, forward and backward: five times is asked for, more is seen."""
    inputs = tokens(batch=1, length=2_048, dim=16, dtype=torch.float32)
    rule = named_rules("each head its own")

    def seconds(call):
        start = time.perf_counter()
        torch.autograd.grad(call(*inputs)[0].sum(), inputs[:3])
        return time.perf_counter() - start

    chunked = min(seconds(by_chunk(rule, None, None, 64)) for _ in range(3))
    assert 5.0 * chunked < seconds(by_token(rule, None, None))


def test_a_gradient_of_a_gradient_is_refused():
    """The backward pass is not differentiated: what came of it would be wrong in silence."""
    inputs = tokens(batch=1, length=20, dim=4, dtype=torch.float64)
    rule = named_rules("each head its own")
    message = "tensor_memory: a gradient must be taken once, got create_graph=True; use"
    with pytest.raises(ValueError, match=message):
        torch.autograd.grad(
            by_chunk(rule, None, None, 16)(*inputs)[0].sum(), inputs, create_graph=True
        )
    slow = by_token(rule, None, None)(*inputs)[0].square().sum()
    (once,) = torch.autograd.grad(slow, inputs[0], create_graph=True)
    assert torch.autograd.grad(once.square().sum(), inputs[1])[0].isfinite().all()


def test_gradients_by_differences():
    """Of everything, with padding and a state, against what small changes do."""
    inputs = tokens(batch=1, length=18, dim=2, dtype=torch.float64)
    real = torch.arange(18)[None] > 2
    form = by_chunk(named_rules("each head its own"), real, None, 16)
    assert torch.autograd.gradcheck(form, inputs, atol=1e-6)


def test_no_tokens():
    query, key, value, memory, norm = tokens(batch=2, length=0, dim=4, dtype=torch.float32)
    rule = named_rules("delta")
    for form in (by_token(rule, None, None), by_chunk(rule, None, None, 16)):
        read, left, sums = form(query, key, value, memory, norm)
        assert read.shape == query.shape
        assert torch.equal(left, memory)
        assert torch.equal(sums, norm)
