"""Heads of different rules, computed together."""

import copy

import pytest
import torch

from memtx import DecayingTensorMemory, MultiHeadMemory, TensorMemory
from tests.tensor.parts import config, heads, written_state


@pytest.mark.shapes
@pytest.mark.parametrize("length", [1, 40])
def test_heads_together_equal_heads_alone(length):
    """Rule, decay, eps and bounds of each head are its own."""
    memories = [
        TensorMemory(config({"eps": 1e-3})),
        TensorMemory(config({"use_delta_rule": False, "max_norm": 2.0})),
        DecayingTensorMemory(config({"max_memory": 0.5}), decay=0.8),
        DecayingTensorMemory(config({"use_delta_rule": False, "max_delta": 0.2}), decay=0.99),
    ]
    query, key, value = torch.randn(3, 2, length, 4, 4)
    state = written_state(batch=2, heads=4, dim=4)
    together, after = MultiHeadMemory(memories).read_and_write(
        query, key, value, state, None, None, True
    )
    for head, memory in enumerate(memories):
        at = slice(head, head + 1)
        before = type(state)(memory=state.memory[:, at], norm=state.norm[:, at])
        alone, left = MultiHeadMemory([memory]).read_and_write(
            query[:, :, at], key[:, :, at], value[:, :, at], before, None, None, True
        )
        torch.testing.assert_close(together[:, :, at], alone)
        torch.testing.assert_close(after.memory[:, at], left.memory)
        torch.testing.assert_close(after.norm[:, at], left.norm)


def test_state_only_where_it_is_asked_for():
    query, key, value = torch.randn(3, 1, 5, 2, 4)
    given = heads().read_and_write(query, key, value, None, None, None, False)
    assert given[1] is None


def test_what_the_memories_hold_is_not_used():
    single = TensorMemory(config({}))
    single.reset()
    single.update(torch.ones(1, 1, 4), torch.ones(1, 1, 4))
    query = torch.randn(1, 1, 1, 4)
    read, _ = MultiHeadMemory([single]).read_and_write(query, query, query, None, None, None, True)
    assert read.abs().max() == 0


def test_rules_made_while_inferring_train():
    """The numbers of the heads are kept for later calls, and a gradient must pass them."""
    memory = heads()
    x = torch.randn(1, 5, 2, 4)
    with torch.inference_mode():
        memory.read_and_write(x, x, x, None, None, None, True)
    trained = x.clone().requires_grad_()
    memory.read_and_write(trained, trained, trained, None, None, None, True)[0].sum().backward()
    assert trained.grad.abs().sum() > 0


def test_copy_is_independent():
    memory = heads()
    again = copy.deepcopy(memory)
    assert repr(again) == repr(memory)
    x = torch.randn(1, 3, 2, 4)
    given = [m.read_and_write(x, x, x, None, None, None, False)[0] for m in (memory, again)]
    assert torch.equal(*given)


@pytest.mark.parametrize("dims", [[], [4, 8], [4, 4, 2]])
def test_heads_that_do_not_meet(dims):
    memories = [TensorMemory(config({"dim": dim})) for dim in dims]
    message = rf"MultiHeadMemory: memories must be at least one, all of one dim, got dims=\{dims}"
    with pytest.raises(ValueError, match=message.replace("]", r"\]")):
        MultiHeadMemory(memories)


def test_state_of_another_batch():
    x = torch.randn(3, 5, 2, 4)
    state = written_state(batch=2, heads=2, dim=4)
    message = r"MultiHeadMemory: .* \(3, 2, 4\), got state=\(2, 2, 4\); carry"
    with pytest.raises(ValueError, match=message):
        heads().read_and_write(x, x, x, state, None, None, True)


def test_state_of_another_device():
    x = torch.randn(2, 5, 2, 4)
    state = written_state(batch=2, heads=2, dim=4).to(torch.device("meta"))
    message = "inputs' device 'cpu', got state.device='meta'; move"
    with pytest.raises(ValueError, match=message):
        heads().read_and_write(x, x, x, state, None, None, True)


@pytest.mark.parametrize("shape", [(1, 5, 3, 4), (1, 5, 2, 8), (1, 5, 8)])
def test_tokens_of_other_heads(shape):
    x = torch.randn(shape)
    message = r"key and value must be \[batch, length, 2, 4\], got shapes=.*; cut each"
    with pytest.raises(ValueError, match=message):
        heads().read_and_write(x, x, x, None, None, None, True)


def test_keys_of_another_length():
    x = torch.randn(1, 5, 2, 4)
    message = r"got shapes=\[\(1, 5, 2, 4\), \(1, 4, 2, 4\), \(1, 5, 2, 4\)\]; cut each"
    with pytest.raises(ValueError, match=message):
        heads().read_and_write(x, x[:, 1:], x, None, None, None, True)


def test_what_is_no_memory():
    message = r"memories must be TensorMemory or DecayingTensorMemory, got memories=\['int'\]; give"
    with pytest.raises(ValueError, match=message):
        MultiHeadMemory([3])


def test_heads_from_a_generator():
    memory = MultiHeadMemory(TensorMemory(config({})) for _ in range(3))
    assert memory.num_heads == len(memory.memories) == 3


def test_no_tokens_leave_the_state_as_it_is():
    """The last piece of a text may be empty."""
    state, memory = written_state(batch=2, heads=2, dim=4), heads()
    none = torch.randn(2, 0, 2, 4, requires_grad=True)
    for given in (state, None):
        read, after = memory.read_and_write(none, none, none, given, None, None, True)
        assert read.shape == none.shape
        wanted = torch.zeros_like(state.memory) if given is None else state.memory
        assert torch.equal(after.memory, wanted)
        read.sum().backward()
    read, after = memory.read_and_write(none, none, none, None, None, None, False)
    assert (read.shape, after) == (none.shape, None)
