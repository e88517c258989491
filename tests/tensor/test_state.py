"""The state as an object: moved, cut, emptied, reordered, saved."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtx import TensorMemoryState, TensorMemoryStates
from memtx.tensor.states import keep_state, state_at
from tests.tensor.parts import written_state


def same(first, second):
    return torch.equal(first.memory, second.memory) and torch.equal(first.norm, second.norm)


@pytest.mark.shapes
def test_empty():
    state = TensorMemoryState.empty(batch=2, heads=3, dim=4, device=torch.device("cpu"))
    assert state.memory.shape == (2, 3, 4, 4)
    assert state.norm.shape == (2, 3, 4)
    assert state.memory.dtype == state.norm.dtype == torch.float32
    assert state.memory.abs().sum() + state.norm.abs().sum() == 0


def test_reset_of_rows_leaves_the_others():
    state = written_state(batch=3, heads=1, dim=2)
    state.memory[1] = float("nan")
    emptied = state.reset(torch.tensor([False, True, False]))
    assert emptied.memory[1].abs().sum() + emptied.norm[1].abs().sum() == 0
    rest = torch.tensor([0, 2])
    assert same(emptied.reorder(rest), state.reorder(rest))


def test_reorder_follows_beams():
    state = written_state(batch=2, heads=1, dim=2)
    beams = state.reorder(torch.tensor([1, 1, 0, 1]))
    for row, came_from in enumerate([1, 1, 0, 1]):
        assert torch.equal(beams.memory[row], state.memory[came_from])
        assert torch.equal(beams.norm[row], state.norm[came_from])


def test_detach_and_move():
    state = written_state(batch=1, heads=1, dim=2)
    state.memory.requires_grad_()
    assert not state.detach().memory.requires_grad
    assert state.to(torch.device("meta")).norm.is_meta


def test_saved_and_loaded(tmp_path):
    state = written_state(batch=2, heads=1, dim=2)
    save_file(state.tensors(), tmp_path / "state.safetensors")
    assert same(TensorMemoryState(**load_file(tmp_path / "state.safetensors")), state)


def test_shapes_that_do_not_meet():
    message = r"got memory=\(1, 2, 4, 4\), norm=\(1, 2, 3\); take both from one state"
    with pytest.raises(ValueError, match=message):
        TensorMemoryState(memory=torch.zeros(1, 2, 4, 4), norm=torch.zeros(1, 2, 3))


def test_narrow_state():
    half = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    message = "must be float32, got memory='torch.bfloat16', norm='torch.bfloat16'; keep"
    with pytest.raises(ValueError, match=message):
        TensorMemoryState(memory=half, norm=half[..., 0])


def test_states_of_a_model(tmp_path):
    states = TensorMemoryStates(states=[])
    assert state_at(states, 2) is None
    written = [written_state(batch=2, heads=1, dim=2) for _ in range(2)]
    keep_state(states, 2, written[1], 5)
    keep_state(states, 0, written[0], 5)
    assert [state is None for state in states.states] == [False, True, False]
    assert state_at(states, 2) is written[1]
    save_file(states.tensors(), tmp_path / "states.safetensors")
    again = TensorMemoryStates.of_tensors(load_file(tmp_path / "states.safetensors"))
    assert again.states[1] is None
    assert same(again.states[0], written[0])
    assert same(again.states[2], written[1])
    again.reorder(torch.tensor([1]))
    assert same(again.states[2], written[1].reorder(torch.tensor([1])))
    again.reset(torch.tensor([True]))
    assert again.states[0].norm.abs().sum() == 0
    again.to(torch.device("meta"))
    assert again.states[2].memory.is_meta
    states.states[0].memory.requires_grad_()
    states.detach()
    assert not states.states[0].memory.requires_grad
    assert TensorMemoryStates.of_tensors({}).states == []


@pytest.mark.parametrize("names", [["0.memory"], ["0.memory", "0.norm", "head"]])
def test_tensors_that_are_not_of_states(names):
    state = written_state(batch=1, heads=1, dim=2)
    missing, others = (["0.norm"], []) if len(names) == 1 else ([], ["head"])
    message = f"of each place, got missing={missing!r}, others={others!r}; pass"
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorMemoryStates.of_tensors(dict.fromkeys(names, state.memory))
