"""Which modules are units, and which parameters may belong to one."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from memtx.train import LayersAsUnits, ModulesAsUnits
from memtx.train.opaque import pass_contexts_by
from memtx.train.settling import unsettled
from memtx.train.units import Units, held_outside
from tests import routing
from tests.train import sharded_models as models
from tests.train import tiny


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_layers_of_every_kind_of_model():
    layers = LayersAsUnits()
    stack, tensor = models.shared(models.dense_read), models.tensor_memory()
    assert layers.of(stack) == list(stack.layers)
    assert layers.of(tensor) == list(tensor.layers)
    base = tiny.base(seed=0)
    decoder = list(base.model.layers)
    assert layers.of(base) == decoder
    assert layers.of(tiny.adapter(model=base)) == decoder
    tuned = get_peft_model(tiny.base(seed=0), LoraConfig(r=2, target_modules=["q_proj"]))
    assert layers.of(tuned) == list(tuned.base_model.model.model.layers)
    assert isinstance(layers, Units)


def test_a_layer_that_stands_twice_is_one_unit():
    model = models.repeated()
    assert LayersAsUnits().of(model) == list(model.layers)[:2]


def test_an_unknown_model_is_refused():
    expected = "^LayersAsUnits: it must be known where the layers .* got model='Linear'; name them"
    with pytest.raises(ValueError, match=expected):
        LayersAsUnits().of(nn.Linear(1, 1))


def test_named_modules_must_be_of_the_model():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    units = ModulesAsUnits(modules=[model[1], model[1]])
    assert units.of(model) == [model[1]]
    expected = r"^ModulesAsUnits: modules must be parts .* got not parts of it=\['Conv1d'\]; take"
    with pytest.raises(ValueError, match=expected):
        ModulesAsUnits(modules=[nn.Conv1d(1, 1, 1)]).of(model)


def test_a_bank_of_several_blocks_belongs_to_none_of_them():
    model = models.shared(models.dense_read)
    banks = set(model.banks.parameters())
    assert held_outside(model, units=list(model.layers)) == banks
    assert held_outside(model, units=[]) == set()
    adapter = models.adapter()
    assert held_outside(adapter, units=LayersAsUnits().of(adapter)) == set()


def test_what_only_units_share_is_refused():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared), nn.Linear(2, 2))
    expected = r"^held_outside: a parameter that several units share must .* got shared=\['0.0.weig"
    with pytest.raises(ValueError, match=expected):
        held_outside(model, units=[model[0], model[1]])
    assert held_outside(model, units=[model[0], model[2]]) == set(shared.parameters())


def test_units_in_units_are_refused():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    expected = r"^held_outside: units must not contain one another, got inside of another=\['Linear"
    with pytest.raises(ValueError, match=expected):
        held_outside(model, units=[model[0], model[0][0]])


def test_a_context_comes_through_the_hooks_as_it_is():
    """What looks for tensors in dataclasses between these hooks finds none, and copies nothing."""
    seen, between = [], []

    class Part(nn.Module):
        def forward(self, x, context, *, other):
            seen.append((context, other))
            return x

    part = Part()
    part.register_forward_pre_hook(
        lambda _, args, kwargs: between.append((args[1], kwargs["other"])), with_kwargs=True
    )
    pass_contexts_by(part)
    context = routing.context(batch=1, length=2, known={})
    part(torch.ones(1, 2, 3), context, other=context)
    assert seen[0][0] is context
    assert seen[0][1] is context
    assert not any(hasattr(box, "__dataclass_fields__") for box in between[0])


def test_what_is_yet_to_be_settled():
    model = nn.BatchNorm1d(2)
    names = {id(tensor) for tensor in (model.weight, model.running_mean)}
    assert [each.shape for each in unsettled(model, without=names)] == [(2,), (2,), ()]
