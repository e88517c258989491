"""From adapters to specs and back: stable, JSON, and sharing what was shared."""

import copy

import pytest
import torch
from torch import nn

from memtx import build, describe
from tests.adapters.bases import (
    each_architecture,
    each_site,
    fresh_adapter,
    llama,
    logits,
    tiny_base,
    token_ids,
)
from tests.parts import bank_of, randomize, reader, recall
from tests.spec.models import BANKS, adapter_reading, as_json, bank_from_rows, intricate_adapter


@each_architecture
@each_site
def test_built_adapter_is_equal(architecture, site):
    base = tiny_base(architecture)
    other_base, ids = copy.deepcopy(base), token_ids(2, 5)
    adapter = fresh_adapter(base, site)
    spec = as_json(describe(adapter))
    again = build(spec, other_base)
    assert again.base is other_base
    assert describe(again) == spec == describe(adapter)
    assert repr(again) == repr(adapter)
    randomize(adapter.memory_parameters())
    for mine, theirs in zip(again.memory_parameters(), adapter.memory_parameters(), strict=True):
        mine.data.copy_(theirs)
    assert torch.equal(logits(again, ids), logits(adapter, ids))


def test_spec_of_a_small_part():
    assert describe(bank_of(7, 8)) == {
        "format": 1,
        "shared": {},
        "model": {
            "class": "StandardMemoryBank",
            "arguments": {
                "num_memory_tokens": 7,
                "dim": 8,
                "init": {"class": "Normal", "arguments": {"std": 1.0}},
            },
        },
    }


def test_spec_of_an_adapter_records_its_base_and_shared_parts():
    spec = describe(intricate_adapter())
    assert sorted(spec["shared"]) == ["bank_1", "bank_2", "q_proj", "sublayer"]
    arguments = spec["model"]["arguments"]
    assert arguments["banks"] == [{"shared": "bank_1"}, {"shared": "bank_2"}]
    assert arguments["base"]["base"]["architecture"] == "LlamaForCausalLM"
    assert arguments["base"]["base"]["sizes"]["hidden_size"] == 32
    assert arguments["insertions"][0]["arguments"]["site"] == {
        "enum": "Site",
        "name": "AFTER_ATTENTION",
    }


def test_what_is_shared_stays_shared():
    again = build(as_json(describe(intricate_adapter())), llama())
    first, second, third, fourth = again.insertions
    readers = [each.sublayers[0].sublayer for each in again.insertions]
    assert readers[0].bank is readers[1].bank is readers[3].bank is again.banks[0]
    assert readers[2].bank is again.banks[1]
    assert readers[0].q_proj is readers[2].q_proj
    assert readers[0].k_proj is not readers[1].k_proj
    assert first.sublayers[1] is third.sublayers[1]
    assert second.sublayers[0] is not fourth.sublayers[0]


def test_given_rows_are_recorded_by_their_shape():
    bank = bank_from_rows(7, 8)
    spec = as_json(describe(bank))
    assert spec["model"]["arguments"]["init"] == {
        "class": "FromRows",
        "arguments": {"tensor": {"rows": [7, 8]}},
    }
    again = build(spec)
    assert describe(again) == spec
    assert repr(again) == repr(bank)
    assert again().abs().max() == 0.0
    assert again.init.tensor.untyped_storage().nbytes() == 4  # they take no memory


@pytest.mark.parametrize("bank", BANKS.values(), ids=BANKS)
def test_adapter_of_any_bank_is_built_again(bank):
    adapter = adapter_reading(bank())
    again = build(as_json(describe(adapter)), llama())
    assert describe(again) == describe(adapter)
    assert repr(again) == repr(adapter)
    assert all(each.sublayers[0].sublayer.bank is again.banks[0] for each in again.insertions)


def test_describing_changes_nothing():
    adapter = intricate_adapter()
    before = describe(adapter)
    before["model"]["arguments"]["banks"].clear()
    before["shared"].clear()
    assert describe(adapter) == describe(intricate_adapter())


@pytest.mark.parametrize("part", [recall(bank_of(7, 8), 8), reader(bank_of(7, 8), 8)])
def test_a_part_alone_can_be_described(part):
    assert describe(build(as_json(describe(part)))) == describe(part)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ModuleList([])])
def test_what_is_not_memtx_is_refused(model):
    text = f"^describe: model must be composed of memtx classes, got model='{type(model).__name__}'"
    with pytest.raises(ValueError, match=text):
        describe(model)
