"""Compiled parts do what the parts do, for each layer with the memory of its own."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from memtx import Insertion, Memory, MemoryAdapter, MemoryLibrary, Site
from memtx.adapters import compilation
from memtx.adapters.compilation import compile_parts, uncompile_parts
from tests.adapters.bases import (
    HIDDEN,
    each_architecture,
    each_site,
    expect_same,
    llama,
    logits,
    state_of,
    tiny_base,
    token_ids,
    working_adapter,
)
from tests.parts import bank_of, randomize, recall

# torch's own compiler looks where torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch):
    """Trace and differentiate as ever, but make no kernels: these take minutes to build."""
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_function(f, backend="aot_eager"))
    compilation._compiled.cache_clear()
    yield
    compilation._compiled.cache_clear()
    torch._dynamo.reset()


def alike_in_every_layer(site):
    """A read of the same shape in each layer, each with weights of its own."""
    bank = bank_of(7, HIDDEN)
    adapter = MemoryAdapter(
        base=llama(),
        banks=[bank],
        insertions=[
            Insertion(layer=layer, site=site, sublayers=[recall(bank, HIDDEN)])
            for layer in range(3)
        ],
    )
    randomize(adapter.memory_parameters())
    return adapter.train()


def step(adapter, ids):
    """Loss and gradients of one training step."""
    adapter.zero_grad()
    loss = adapter(input_ids=ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in adapter.memory_parameters())]


@each_site
def test_every_layer_keeps_its_own_memory(site):
    """Whole layers under torch.compile share the first one's, from the second step on."""
    adapter, ids = alike_in_every_layer(site), token_ids(2, 5)
    wanted = step(adapter, ids)
    compile_parts(adapter)
    for _ in range(3):
        for mine, theirs in zip(step(adapter, ids), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)


@each_architecture
def test_logits_stay_and_memory_can_be_switched_off(architecture):
    base, ids = tiny_base(architecture), token_ids(2, 5)
    plain = logits(base, ids)
    adapter = working_adapter(base, Site.AFTER_ATTENTION)
    with_memory = logits(adapter, ids)
    compile_parts(adapter)
    for _ in range(2):
        torch.testing.assert_close(logits(adapter, ids), with_memory, **CLOSE)
        with adapter.disabled():
            torch.testing.assert_close(logits(adapter, ids), plain, **CLOSE)


def test_generation_goes_on():
    adapter, ids = working_adapter(llama(), Site.AFTER_ATTENTION), token_ids(1, 4)
    wanted = adapter.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    compile_parts(adapter)
    given = adapter.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(given, wanted)


def test_a_copy_calls_its_own_parts():
    adapter, ids = working_adapter(llama(), Site.AFTER_MLP), token_ids(2, 5)
    compile_parts(adapter)
    before = logits(adapter, ids)
    twin = copy.deepcopy(adapter)
    randomize(twin.memory_parameters())
    changed = logits(twin, ids)
    uncompile_parts(twin)
    torch.testing.assert_close(logits(twin, ids), changed, **CLOSE)
    assert torch.equal(logits(adapter, ids), before)


def test_undoing_leaves_no_trace():
    base = llama()
    before = state_of(base)
    adapter = working_adapter(base, Site.AFTER_ATTENTION)
    compile_parts(adapter)
    compile_parts(adapter)
    uncompile_parts(adapter)
    assert not any("forward" in vars(part) for part in adapter.modules())
    adapter.remove()
    expect_same(state_of(base), before)


def test_undoing_what_was_not_done_compiles_nothing(monkeypatch):
    def refuses(forward):
        pytest.fail(f"torch.compile was called for {forward}")

    adapter = working_adapter(llama(), Site.AFTER_ATTENTION)
    compile_parts(adapter)
    compilation._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", refuses)
    uncompile_parts(adapter)
    assert not any("forward" in vars(part) for part in adapter.modules())
    uncompile_parts(adapter)


def test_what_another_library_put_there_stays():
    base = tiny_base(LlamaForCausalLM)
    mlp = base.model.layers[0].mlp
    own = mlp.forward = lambda x: 0.0 * x
    compile_parts(base)
    assert mlp.forward is own
    assert "forward" in vars(base.model.layers[1].mlp)
    uncompile_parts(base)
    assert mlp.forward is own
    assert "forward" not in vars(base.model.layers[1].mlp)


def test_a_base_that_was_compiled_before_reads_the_memory_that_comes_and_goes():
    """torch does not look again at hooks that were not there: attaching makes it compile anew."""
    base, ids = llama().requires_grad_(False), token_ids(2, 5)
    compiled = torch.compile(base)
    plain = logits(compiled, ids)
    bank = bank_of(7, HIDDEN)
    places = [(0, Site.AFTER_ATTENTION), (1, Site.AFTER_MLP)]
    insertions = [
        Insertion(layer=layer, site=site, sublayers=[recall(bank, HIDDEN)])
        for layer, site in places
    ]
    randomize([p for insertion in insertions for p in insertion.parameters()])
    adapter = MemoryAdapter(base=base, banks=[bank], insertions=insertions).eval()
    with_memory = logits(base, ids)
    assert not torch.allclose(with_memory, plain)
    torch.testing.assert_close(logits(compiled, ids), with_memory, **CLOSE)
    adapter.remove()
    torch.testing.assert_close(logits(compiled, ids), plain, **CLOSE)
    library = MemoryLibrary(
        base=base, memories={"one": Memory(banks=[bank], insertions=insertions)}
    )
    library.activate("one")
    torch.testing.assert_close(logits(compiled, ids), with_memory, **CLOSE)
    library.deactivate()
    library.delete("one")
    torch.testing.assert_close(logits(compiled, ids), plain, **CLOSE)
