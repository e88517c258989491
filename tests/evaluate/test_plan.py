"""A plan, against what is there when the model is allocated and trained."""

import pytest
import torch
from torch import nn

from factories import from_scratch, tensor_memory
from memtx.evaluate import training_flops
from memtx.evaluate.plan import OPTIMIZERS, plan
from memtx.train import SGD, Adam, AdamW, ParameterGroup
from tests.train import tiny

SIZES = {"batch": 2, "length": 16}


def made_on(device):
    with torch.device(device):
        return from_scratch.routed_a_tiny()


def test_on_the_meta_device_it_says_what_is_true_of_the_model_itself():
    there = plan(model=made_on("meta"), optimizer="AdamW", **SIZES)
    here = plan(model=made_on("cpu"), optimizer="AdamW", **SIZES)
    assert there == here
    model = made_on("cpu")
    assert there["trainable"] == sum(p.numel() for p in model.parameters())
    assert there["frozen"] == 0
    assert sum(group["tensors"] for group in there["groups"].values()) == len(
        list(model.parameters())
    )
    flops = training_flops(model=model, **SIZES)
    assert there["flops_per_token"]["training"] == flops.per_token
    parts = there["flops_by_part"].values()
    assert sum(each["forward"] + each["backward"] for each in parts) == flops.total


OURS = {
    "AdamW": AdamW(betas=(0.9, 0.95), eps=1e-8),
    "Adam": Adam(betas=(0.9, 0.95), eps=1e-8),
    "SGD": SGD(momentum=0.9),
}


@pytest.mark.parametrize("name", OURS)
def test_the_bytes_are_those_of_weights_gradients_and_moments(name):
    model = made_on("cpu").to(torch.bfloat16)
    group = ParameterGroup(
        name="all", modules=[model], without=[], learning_rate=1e-3, weight_decay=0.0
    )
    optimizer = OURS[name].make([group])
    model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    found = plan(model=model, optimizer=name, **SIZES)["bytes"]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert found["gradients"] == sum(p.grad.nbytes for p in trained)
    moments = [
        value for state in optimizer.state.values() for key, value in state.items() if key != "step"
    ]
    assert found["optimizer"] == sum(moment.nbytes for moment in moments)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert found["weights"] == sum(p.nbytes for p in model.parameters()) + buffers
    parts = ("weights", "gradients", "optimizer")
    assert found["together"] == sum(found[part] for part in parts)


def test_moments_of_8_bits_are_those_of_bitsandbytes():
    from bitsandbytes.optim import AdamW8bit

    for numbers in (100, 4096, 10_000):
        parameter = nn.Parameter(torch.ones(numbers))
        optimizer = AdamW8bit([parameter])
        parameter.grad = torch.ones(numbers)
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
        state = optimizer.state[parameter]
        kept = ("state1", "state2", "absmax1", "absmax2")
        wanted = sum(state[key].nbytes for key in kept if key in state)
        layer = nn.Linear(1, 1)
        layer.weight, layer.bias = parameter, None
        from memtx.evaluate.plan import _moments

        assert _moments(parameter, optimizer="AdamW8bit") == wanted


def test_an_adapter_has_a_frozen_base_a_bank_and_memory():
    model = tiny.adapter(model=tiny.base(seed=0))
    found = plan(model=model, optimizer="AdamW", **SIZES)
    assert list(found["groups"]) == ["bank", "memory", "base"]
    bank, memory, base = found["groups"].values()
    assert bank == {"tensors": 1, "trainable": 24 * tiny.WIDTH, "frozen": 0}
    inside = [p for p in model.insertions.parameters() if p is not model.banks[0].tokens]
    assert memory["trainable"] == sum(p.numel() for p in inside)
    assert base["trainable"] == 0
    assert base["frozen"] == sum(p.numel() for p in model.base.parameters())
    assert found["memory_tokens"] == 24
    assert found["bytes"]["bank"] == 4 * 24 * tiny.WIDTH


def test_a_router_has_a_group_of_its_own():
    groups = plan(model=made_on("meta"), optimizer="AdamW", **SIZES)["groups"]
    assert list(groups) == ["bank", "router", "memory", "transformer"]
    routers = [p for n, p in made_on("meta").named_parameters() if ".router." in n]
    assert groups["router"]["tensors"] == len(routers)
    assert groups["router"]["trainable"] == sum(p.numel() for p in routers)


def test_a_tensor_memory_has_no_bank():
    with torch.device("meta"):
        model = tensor_memory.tiny(vocab_size=50)
    found = plan(model=model, optimizer="AdamW", **SIZES)
    assert list(found["groups"]) == ["memory", "transformer"]
    assert found["memory_tokens"] == found["bytes"]["bank"] == 0


def test_another_optimizer_is_refused():
    message = f"plan: optimizer must be one of {', '.join(OPTIMIZERS)}, got optimizer='Lion';"
    with pytest.raises(ValueError, match=message):
        plan(model=made_on("meta"), optimizer="Lion", **SIZES)
