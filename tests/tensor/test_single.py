"""A memory by itself: reset, retrieve, update."""

import re
from functools import partial

import pytest
import torch

from memtx import DecayingTensorMemory, TensorMemory
from tests.tensor.parts import config

MAKES = {
    "plain": lambda: TensorMemory(config({"use_delta_rule": False})),
    "delta": lambda: TensorMemory(config({})),
    "decaying": lambda: DecayingTensorMemory(config({}), decay=0.9),
}


@pytest.fixture(params=MAKES.values(), ids=MAKES)
def memory(request):
    made = request.param()
    made.reset()
    return made


@pytest.mark.shapes
def test_nothing_is_read_from_an_empty_memory(memory):
    assert memory.retrieve(torch.randn(3, 5, 4)).abs().max() == 0
    assert memory.state is None


@pytest.mark.shapes
def test_retrieve_reads_and_update_writes(memory):
    key, value = torch.randn(2, 3, 5, 4)
    memory.update(key, value)
    first = memory.retrieve(key)
    assert torch.equal(memory.retrieve(key), first)
    memory.update(key, value)
    assert not torch.equal(memory.retrieve(key), first)
    memory.reset()
    assert memory.retrieve(key).abs().max() == 0


def test_each_sequence_has_its_own_state(memory):
    key, value = torch.randn(2, 3, 5, 4)
    memory.update(key, value)
    together = memory.retrieve(key)
    for row in range(3):
        memory.reset()
        memory.update(key[row : row + 1], value[row : row + 1])
        torch.testing.assert_close(memory.retrieve(key[row : row + 1]), together[row : row + 1])


def test_one_update_equals_two(memory):
    key, value = torch.randn(2, 2, 7, 4)
    memory.update(key, value)
    once = memory.retrieve(key)
    memory.reset()
    memory.update(key[:, :3], value[:, :3])
    memory.update(key[:, 3:], value[:, 3:])
    torch.testing.assert_close(memory.retrieve(key), once)


def test_a_single_value_is_recalled(memory):
    key, value = torch.randn(2, 2, 1, 4)
    memory.update(key, value)
    torch.testing.assert_close(memory.retrieve(key), value, rtol=1e-4, atol=1e-4)


def test_bounds_of_the_state():
    memory = TensorMemory(
        config({"use_delta_rule": False, "max_delta": 2.0, "max_memory": 3.0, "max_norm": 5.0})
    )
    memory.reset()
    memory.update(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 9.0))
    assert memory.state.memory.unique().tolist() == [2.0]
    for _ in range(9):
        memory.update(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 9.0))
    assert memory.state.memory.unique().tolist() == [3.0]
    assert memory.state.norm.unique().tolist() == [5.0]


@pytest.mark.parametrize("make", [TensorMemory, partial(DecayingTensorMemory, decay=0.5)])
def test_values_that_are_no_config(make):
    message = r"TensorMemory: config must be a TensorMemoryConfig, got config=\{'dim': 4\}; make"
    with pytest.raises(ValueError, match=message):
        make({"dim": 4})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0, float("nan"), 1e-50, None, "0.5"])
def test_decay_out_of_range(decay):
    message = f"DecayingTensorMemory: decay must lie between 0 and 1, got decay={decay!r}; use"
    with pytest.raises(ValueError, match=message):
        DecayingTensorMemory(config({}), decay=decay)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_before_the_first_reset(make):
    x = torch.ones(1, 1, 4)
    message = "must be reset before it is used, got state=None; call reset"
    with pytest.raises(ValueError, match=message):
        make().retrieve(x)
    with pytest.raises(ValueError, match=message):
        make().update(x, x)


def test_other_width(memory):
    with pytest.raises(ValueError, match=r"memory's dim 4, got shape=\(1, 2, 3\); pass"):
        memory.retrieve(torch.ones(1, 2, 3))


def test_other_batch(memory):
    memory.update(torch.ones(2, 1, 4), torch.ones(2, 1, 4))
    message = r"batch, heads and dim \(3, 1, 4\), got state=\(2, 1, 4\)"
    with pytest.raises(ValueError, match=message):
        memory.update(torch.ones(3, 1, 4), torch.ones(3, 1, 4))


def test_other_device(memory):
    with pytest.raises(ValueError, match="memory's device 'cpu', got device='meta'"):
        memory.retrieve(torch.ones(1, 1, 4, device="meta"))
    memory.reset(torch.device("meta"))
    assert memory.retrieve(torch.ones(1, 1, 4, device="meta")).is_meta
    # without a device it stays where it is
    memory.reset()
    assert memory.retrieve(torch.ones(1, 1, 4, device="meta")).is_meta


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 2, 4)])
def test_a_value_for_each_key(memory, shape):
    message = re.escape(f"must have a value of its width, got key=(2, 3, 4), value={shape}; pass")
    with pytest.raises(ValueError, match=message):
        memory.update(torch.ones(2, 3, 4), torch.ones(shape))


def test_tokens_without_a_batch(memory):
    with pytest.raises(ValueError, match=r"memory's dim 4, got shape=\(3, 4\); pass"):
        memory.retrieve(torch.ones(3, 4))
