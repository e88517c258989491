"""A frozen memory answers as before, without projecting its bank, until it may not."""

import copy
import re

import pytest
import torch
from torch import nn

from memtx import (
    MemoryTransformer,
    OffloadedMemoryBank,
    RollingRouting,
    Site,
    TokenRouting,
    describe,
    save,
)
from memtx.generate import AsProjected, InDtype, InEightBits, freeze_for_inference
from memtx.memory import frozen as module
from memtx.models.face import Generator
from tests import routing
from tests.adapters import libraries
from tests.adapters.bases import llama, logits, token_ids, working_adapter
from tests.models import stacks
from tests.models.stacks import working
from tests.routing import CAUSAL, MIXINGS, STRATEGIES

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def dense():
    return working(stacks.dense_arguments())


def routed(strategy, mixing):
    return working(stacks.routed_arguments(strategy, mixing))


def readers(model):
    return [part for part in model.modules() if hasattr(part, "frozen")]


def projected(model, ids):
    """The logits, and how many rows of the bank went through the projections of a reader."""
    rows = []
    hooks = [
        projection.register_forward_hook(lambda _module, _given, out: rows.append(out.shape[0]))
        for reader in readers(model)
        for projection in (reader.k_proj, reader.v_proj)
    ]
    found = logits(model, ids)
    for hook in hooks:
        hook.remove()
    return found, sum(rows)


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_a_dense_memory_answers_to_the_bit_and_projects_nothing():
    model, ids = dense(), token_ids(2, 6) % stacks.VOCABULARY
    wanted, count = projected(model, ids)
    assert count == 2 * 2 * 7
    with freeze_for_inference(model, storage=AsProjected()) as memory:
        given, count = projected(model, ids)
        assert torch.equal(given, wanted)
        assert count == 0
        assert memory.nbytes == 2 * 2 * 7 * 4 * 4
    given, count = projected(model, ids)
    assert torch.equal(given, wanted)
    assert (count, memory.nbytes) == (2 * 2 * 7, 0)


@pytest.mark.parametrize("mixing", MIXINGS.values(), ids=MIXINGS)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_routed_memory_answers_to_rounding(strategy, mixing):
    model, ids = routed(strategy, mixing), stacks.token_ids(2, 9)
    wanted = logits(model, ids)
    with freeze_for_inference(model, storage=AsProjected()):
        given, count = projected(model, ids)
    torch.testing.assert_close(given, wanted, **CLOSE)
    assert count == 0


STORAGES = [(InDtype(dtype=torch.bfloat16), 0.03), (InEightBits(), 0.03)]


@pytest.mark.parametrize(("storage", "most"), STORAGES, ids=["bfloat16", "eight bits"])
@pytest.mark.parametrize("kind", ["dense", *MIXINGS])
def test_narrow_keys_and_values_answer_nearly_so(storage, most, kind):
    model = dense() if kind == "dense" else routed(TokenRouting(), MIXINGS[kind])
    ids = stacks.token_ids(2, 9)
    wanted = logits(model, ids)
    with freeze_for_inference(model, storage=storage):
        given = logits(model, ids)
    assert given.dtype == wanted.dtype
    error = (given - wanted).norm() / wanted.norm()
    assert 0.0 < error < most


def test_a_large_bank_is_projected_piece_by_piece(monkeypatch):
    model, ids = dense(), stacks.token_ids(2, 6)
    wanted = logits(model, ids)
    monkeypatch.setattr(module, "PIECE", 3)
    with freeze_for_inference(model, storage=AsProjected()):
        torch.testing.assert_close(logits(model, ids), wanted, **CLOSE)


@pytest.mark.parametrize("strategy", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("way", [{"do_sample": False}, {"num_beams": 2, "do_sample": False}])
def test_generation_is_the_same(strategy, way):
    model, ids = routed(strategy, MIXINGS["joint"]), stacks.token_ids(2, 5)
    settings = {"input_ids": ids, "max_new_tokens": 6, "pad_token_id": 0, **way}
    wanted = model.generate(**settings)
    with freeze_for_inference(Generator(model=model), storage=AsProjected()):
        assert torch.equal(model.generate(**settings), wanted)


@pytest.mark.parametrize("site", Site, ids=lambda site: site.value)
def test_an_adapter_generates_the_same(site):
    adapter, ids = working_adapter(llama(), site), token_ids(2, 4)
    wanted = adapter.generate(ids, max_new_tokens=5, do_sample=False)
    static = {"cache_implementation": "static", "disable_compile": True}
    with freeze_for_inference(adapter, storage=AsProjected()):
        given, count = projected(adapter, ids)
        assert torch.equal(adapter.generate(ids, max_new_tokens=5, do_sample=False), wanted)
        given = adapter.generate(ids, max_new_tokens=5, do_sample=False, **static)
        assert torch.equal(given, wanted)
        assert count == 0
        with adapter.disabled():
            plain = logits(adapter, ids)
    with adapter.disabled():
        assert torch.equal(logits(adapter, ids), plain)


def test_a_routed_adapter_generates_the_same():
    places = [(0, Site.AFTER_ATTENTION), (1, Site.AFTER_MLP)]
    adapter = routing.adapter(llama(), RollingRouting(window=3), sites=places, losses=[])
    ids = token_ids(2, 4)
    wanted = adapter.generate(ids, max_new_tokens=7, do_sample=False)
    with freeze_for_inference(adapter, storage=AsProjected()):
        assert torch.equal(adapter.generate(ids, max_new_tokens=7, do_sample=False), wanted)


def test_rows_of_a_library_read_frozen_memories():
    library, ids = libraries.usual(), token_ids(4, 6)
    choices = ["anna", "bob", "wide", None]
    wanted = libraries.by_rows(library, choices, ids)
    with freeze_for_inference(library, storage=AsProjected()):
        torch.testing.assert_close(libraries.by_rows(library, choices, ids), wanted, **CLOSE)
    narrow = InDtype(dtype=torch.bfloat16)
    with freeze_for_inference(library, storage=narrow):
        given = libraries.by_rows(library, choices, ids)
    assert 0.0 < (given - wanted).norm() / wanted.norm() < 0.03
    # One frozen beside one that is not, read together.
    with freeze_for_inference(library.memories["anna"], storage=AsProjected()):
        torch.testing.assert_close(libraries.by_rows(library, choices, ids), wanted, **CLOSE)


def test_a_compiled_forward_reads_what_is_frozen():
    model, ids = dense(), stacks.token_ids(2, 6)
    wanted = logits(model, ids)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with freeze_for_inference(model, storage=AsProjected()):
        torch.testing.assert_close(logits(compiled, ids), wanted, **CLOSE)
    torch.testing.assert_close(logits(compiled, ids), wanted, **CLOSE)


def test_gradients_are_refused_where_one_would_be_missing():
    model, ids = dense(), stacks.token_ids(1, 4)
    message = (
        "MemoryCrossAttention: a frozen memory must be read without gradients: its bank and "
        "projections would learn nothing, got grad enabled=True; read it under torch.no_grad(), or "
        "thaw it before training."
    )
    with freeze_for_inference(model, storage=AsProjected()):
        with refused(message):
            model(input_ids=ids)
        for reader in readers(model):
            for part in (reader.bank, reader.k_proj, reader.v_proj):
                part.requires_grad_(False)
        # What is not frozen learns what it did before.
        model(input_ids=ids, labels=ids).loss.backward()
        given = readers(model)[0].q_proj.weight.grad.clone()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(given, readers(model)[0].q_proj.weight.grad, **CLOSE)


CHANGES = {
    "an update": (lambda reader: reader.bank.tokens.add_(1.0), "tokens"),
    "a load": (
        lambda reader: reader.k_proj.load_state_dict(reader.k_proj.state_dict()),
        "weight",
    ),
    "a cast": (lambda reader: reader.v_proj.double(), "weight"),
    "another weight": (
        lambda reader: setattr(reader.k_proj, "weight", nn.Parameter(reader.k_proj.weight.clone())),
        "weight",
    ),
    "another part": (
        lambda reader: setattr(reader, "v_proj", copy.deepcopy(reader.v_proj)),
        "v_proj",
    ),
}


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_what_was_projected_is_refused(change, name):
    model, ids = dense(), stacks.token_ids(1, 4)
    memory = freeze_for_inference(model, storage=AsProjected())
    with torch.no_grad():
        change(readers(model)[0])
    message = (
        "MemoryCrossAttention: a frozen memory must stay as it was when it was frozen, got "
        f"changed={name!r}; thaw it, and freeze it anew."
    )
    with refused(message):
        logits(model, ids)
    memory.thaw()
    model.float()
    wanted = logits(model, ids)
    with freeze_for_inference(model, storage=AsProjected()):
        assert torch.equal(logits(model, ids), wanted)


def test_an_optimizer_step_is_a_change():
    model, ids = routed(TokenRouting(), MIXINGS["joint"]), stacks.token_ids(1, 4)
    model(input_ids=ids, labels=ids).loss.backward()
    with freeze_for_inference(model, storage=AsProjected()):
        logits(model, ids)
        torch.optim.AdamW(model.parameters(), lr=1e-3).step()
        with pytest.raises(ValueError, match="RoutedMemoryCrossAttention: a frozen memory must"):
            logits(model, ids)


def test_a_copy_is_frozen_by_itself():
    model, ids = dense(), stacks.token_ids(1, 4)
    freeze_for_inference(model, storage=AsProjected())
    other = copy.deepcopy(model)
    assert torch.equal(logits(other, ids), logits(model, ids))
    with torch.no_grad():
        other.banks[0].tokens.zero_()
    logits(model, ids)
    with pytest.raises(ValueError, match="got changed='tokens'"):
        logits(other, ids)


def test_nothing_of_the_model_is_changed(tmp_path):
    model = dense()
    before = (describe(model), repr(model), list(model.state_dict()), dict(model.named_buffers()))
    with freeze_for_inference(model, storage=InEightBits()):
        now = (describe(model), repr(model), list(model.state_dict()), dict(model.named_buffers()))
        assert now == before
        save(model, tmp_path / "frozen")
    save(model, tmp_path / "thawed")
    names = sorted(path.name for path in (tmp_path / "frozen").iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            pair = [(tmp_path / each / name).read_bytes() for each in ("frozen", "thawed")]
            assert pair[0] == pair[1]


def test_a_bank_that_lies_elsewhere_is_refused_and_left_as_it_was():
    model, ids = routed(TokenRouting(), MIXINGS["joint"]), stacks.token_ids(1, 4)
    small, (bank,) = logits(model, ids), model.banks
    elsewhere = OffloadedMemoryBank(
        stored=bank,
        tokens_per_chapter=bank.num_memory_tokens // readers(model)[0].router.num_chapters,
        num_resident_chapters=readers(model)[0].router.num_chapters,
    )
    model.banks[0] = elsewhere
    for reader in readers(model):
        reader.bank = elsewhere
    message = (
        "freeze_for_inference: keys and values of all memory tokens must have room where they are "
        "read, which a bank that lies elsewhere does not promise, got "
        f"banks={['OffloadedMemoryBank'] * len(readers(model))}; read such a bank as it is: it "
        "keeps the chapters read last."
    )
    with refused(message):
        freeze_for_inference(model, storage=AsProjected())
    torch.testing.assert_close(logits(model, ids), small, **CLOSE)


def test_a_model_without_memory_or_frozen_already_is_refused():
    message = (
        "freeze_for_inference: the model must read at least one memory, and none that is frozen "
        "already, got reads={reads}, frozen={frozen}; freeze a model with memory, and thaw what "
        "was frozen before."
    )
    with refused(message.format(reads=0, frozen=0)):
        freeze_for_inference(MemoryTransformer(**stacks.vanilla_arguments()), storage=AsProjected())
    model = dense()
    freeze_for_inference(model, storage=AsProjected())
    with refused(message.format(reads=2, frozen=2)):
        freeze_for_inference(model, storage=AsProjected())
