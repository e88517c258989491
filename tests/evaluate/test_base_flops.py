"""The count of Hugging Face bases, alone, with memory and with LoRA, against torch's own."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memtx import Insertion, MemoryAdapter, Site
from memtx.evaluate import forward_flops, training_flops
from tests.conformance.families import BY_NAME, CASES, HIDDEN, LAYERS
from tests.parts import bank_of, randomize, recall, think

# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
BATCH, LENGTH = 2, 12
IDS = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 50 + 2

each_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def counted(model, *, backward):
    """What torch counts, but for the angles of rotary positions, which are not counted here.

    Experts run one by one: torch's counter does not know their grouped product.
    """
    model.config._experts_implementation = "eager"
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plain, torch.set_grad_enabled(backward):
        output = model(input_ids=IDS, use_cache=False)
        if backward:
            output.logits.sum().backward()
    angles = {
        name: sum(found.values())
        for name, found in counter.get_flop_counts().items()
        if name.endswith("rotary_emb")
    }
    return counter.get_total_flops() - sum(angles.values())


def expect_equal(model):
    """The forward alone, and with its backward."""
    sizes = {"batch": BATCH, "length": LENGTH}
    assert forward_flops(model=model, **sizes).total == counted(model, backward=False)
    found = training_flops(model=model, **sizes)
    assert found.total == counted(model, backward=True)
    assert sum(found.forward.values()) == forward_flops(model=model, **sizes).total


def adapter_on(base, places):
    bank = bank_of(7, HIDDEN)
    insertions = [
        Insertion(layer=layer, site=site, sublayers=[recall(bank, HIDDEN), think(HIDDEN)])
        for layer, site in places
    ]
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=insertions)
    randomize(adapter.memory_parameters())
    return adapter


def with_lora(case):
    config = LoraConfig(r=2, target_modules=case.lora, task_type="CAUSAL_LM")
    return get_peft_model(case.base(), config)


@each_family
def test_a_base_that_is_trained_as_a_whole(case):
    expect_equal(case.base())


@pytest.mark.parametrize("site", Site, ids=lambda site: site.value)
@pytest.mark.parametrize("case", [c for c in CASES if not c.parallel], ids=lambda c: c.name)
def test_below_the_lowest_reading_layer_there_is_no_backward(case, site):
    adapter = adapter_on(case.base(), [(1, site), (LAYERS - 1, Site.AFTER_MLP)])
    expect_equal(adapter)
    low = adapter_on(case.base(), [(0, site)])
    high = adapter_on(case.base(), [(LAYERS - 1, site)])
    sizes = {"batch": BATCH, "length": LENGTH}
    assert training_flops(model=low, **sizes).total > training_flops(model=high, **sizes).total
    assert forward_flops(model=low, **sizes).total == forward_flops(model=high, **sizes).total


@pytest.mark.parametrize("name", ["Llama", "Phi3", "GPT-NeoX-parallel"])
def test_lora_in_every_layer(name):
    case = BY_NAME[name]
    model = with_lora(case)
    sizes = {"batch": BATCH, "length": LENGTH}
    assert forward_flops(model=model, **sizes).total == counted(model, backward=False)
    found, wanted = training_flops(model=model, **sizes).total, counted(model, backward=True)
    # Of the lowest attention the side without LoRA needs no gradient, which is not told apart.
    assert wanted <= found <= 1.02 * wanted


def test_lora_below_a_memory_makes_all_above_it_need_gradients():
    adapter = adapter_on(with_lora(BY_NAME["Llama"]), [(1, Site.AFTER_MLP)])
    found = training_flops(model=adapter, batch=BATCH, length=LENGTH).total
    wanted = counted(adapter, backward=True)
    assert wanted <= found <= 1.02 * wanted


def test_on_the_meta_device_nothing_is_run():
    with torch.device("meta"):
        there = adapter_on(BY_NAME["Llama"].base(), [(1, Site.AFTER_ATTENTION)])
    here = adapter_on(BY_NAME["Llama"].base(), [(1, Site.AFTER_ATTENTION)])
    sizes = {"batch": BATCH, "length": LENGTH}
    assert training_flops(model=there, **sizes) == training_flops(model=here, **sizes)


def test_a_module_of_a_base_that_is_not_known_is_refused():
    base = BY_NAME["Llama"].base()
    base.model.layers[0].mlp.up_proj = nn.Conv1d(2, 3, 5)
    message = r"forward_flops: a module of the base must hold .* got module='Conv1d', shape=\(3, 2"
    with pytest.raises(ValueError, match=message):
        forward_flops(model=base, batch=1, length=1)
