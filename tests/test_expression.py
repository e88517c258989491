"""Parts print as the expression that makes them again."""

import re

import pytest
import torch
from torch import nn

import memtx
from memtx import Insertion, Linear, MemoryCrossAttention, Normal, RMSNorm, Site, SwiGLU
from memtx.expression import LINE_WIDTH, arguments, expression, is_component, shared_parts
from tests.parts import bank_of, linear, read_arguments, reader, recall, think


def evaluated(part):
    return eval(repr(part), dict(vars(memtx)))


def insertion(sublayers):
    return Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=sublayers)


def test_short_expression_is_one_line():
    assert repr(RMSNorm(dim=4, eps=0.5)) == "RMSNorm(dim=4, eps=0.5)"
    text = "Linear(in_features=3, out_features=2, bias=False, init=Normal(std=0.3))"
    assert repr(linear(3, 2)) == text


def test_long_expression_is_laid_out():
    part = SwiGLU(gate_proj=linear(4, 8), up_proj=linear(4, 8), down_proj=linear(8, 4))
    line = "Linear(in_features={}, out_features={}, bias=False, init=Normal(std=0.3)),"
    assert repr(part).splitlines() == [
        "SwiGLU(",
        f"    gate_proj={line.format(4, 8)}",
        f"    up_proj={line.format(4, 8)}",
        f"    down_proj={line.format(8, 4)}",
        ")",
    ]


def test_lines_keep_to_the_width():
    text = repr(insertion([recall(bank_of(7, 8), 8), think(8)]))
    assert max(map(len, text.splitlines())) <= LINE_WIDTH == 88


def test_enums_and_lists_print_as_written():
    assert re.search(r"site=Site\.AFTER_ATTENTION,\s+sublayers=\[", repr(insertion([think(8)])))


def test_shared_bank_is_named_once_and_shared_again():
    bank = bank_of(7, 8)
    text = repr(insertion([recall(bank, 8), recall(bank, 8)]))
    assert text.count("StandardMemoryBank(") == 1
    assert text.count("bank=(bank := StandardMemoryBank(") == 1
    assert text.count("bank=bank,") == 1
    first, second = evaluated(insertion([recall(bank, 8), recall(bank, 8)])).sublayers
    assert first.sublayer.bank is second.sublayer.bank


def test_separate_banks_stay_separate():
    part = insertion([recall(bank_of(7, 8), 8), recall(bank_of(7, 8), 8)])
    assert shared_parts(part) == {}
    first, second = evaluated(part).sublayers
    assert first.sublayer.bank is not second.sublayer.bank


def test_shared_projection_inside_one_reader():
    both = linear(8, 4)
    part = MemoryCrossAttention(**(read_arguments(8) | {"k_proj": both, "v_proj": both}))
    assert shared_parts(part) == {id(both): "k_proj"}
    again = evaluated(part)
    assert again.k_proj is again.v_proj
    assert again.k_proj is not again.q_proj


def test_several_shared_parts_are_numbered():
    one, other = bank_of(7, 8), bank_of(9, 8)
    part = insertion([recall(bank, 8) for bank in (one, other, one, other)])
    assert shared_parts(part) == {id(one): "bank_1", id(other): "bank_2"}
    banks = [sublayer.sublayer.bank for sublayer in evaluated(part).sublayers]
    assert [bank.num_memory_tokens for bank in banks] == [7, 9, 7, 9]
    assert banks[0] is banks[2]
    assert banks[1] is banks[3]


def test_shared_block_names_only_itself():
    """What is inside a shared part appears once, in that part."""
    block = recall(bank_of(7, 8), 8)
    part = insertion([block, think(8), block])
    assert shared_parts(part) == {id(block): "sublayer"}
    first, _, third = evaluated(part).sublayers
    assert first is third


def test_initialisers_are_values_and_never_shared():
    init = Normal(std=0.3)
    names = ("gate_proj", "up_proj", "down_proj")
    square = {"in_features": 4, "out_features": 4, "bias": False, "init": init}
    part = SwiGLU(**{name: Linear(**square) for name in names})
    assert shared_parts(part) == {}
    assert repr(part).count("init=Normal(std=0.3)") == 3


def test_what_is_not_memtx_is_not_a_component():
    assert is_component(Normal(std=1.0))
    assert is_component(linear(2, 2))
    assert not is_component(nn.Linear(2, 2))
    assert not is_component(Linear)
    assert not is_component(4)


def test_outside_modules_and_tensors_print_as_what_they_are():
    part = reader(bank_of(7, 8), 8)
    part.q_proj = nn.Linear(8, 8)
    part.dropout = torch.zeros(2, 3)
    assert "q_proj=<Linear>" in repr(part)
    assert "dropout=<tensor of shape [2, 3]>" in repr(part)


def test_arguments_come_back_as_given():
    blocks = [think(8), think(8)]
    found = arguments(insertion(blocks))
    assert found == {"layer": 0, "site": Site.AFTER_ATTENTION, "sublayers": blocks}


@pytest.mark.parametrize("part", [RMSNorm(dim=4, eps=1e-5), Normal(std=1e-20)])
def test_floats_survive(part):
    assert arguments(evaluated(part)) == arguments(part)
    assert expression(part) == repr(part)
