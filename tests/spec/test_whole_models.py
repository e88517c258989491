"""Whole models as folders and as specs: bit-identical, whole or not at all, refused where wrong."""

import copy
import hashlib
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtx import RollingRouting, build, describe, load, load_adapter, save, to_source
from memtx.spec.classes import CLASSES
from tests.adapters.bases import llama
from tests.huggingface.faces import BANKS, MODELS, logits
from tests.models import stacks
from tests.models.stacks import token_ids, working
from tests.parts import randomize
from tests.routing import MIXINGS
from tests.spec.models import adapter_on, as_json

FILES = ["config.json", "model.safetensors"]


def model_of(strategy):
    return working(stacks.routed_arguments(strategy, MIXINGS["joint"]))


def rolling():
    return model_of(RollingRouting(window=3))


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_model_is_bit_identical(name, dtype, tmp_path):
    model, ids = MODELS[name]().to(dtype), token_ids(2, 7)
    save(model, tmp_path / "model")
    assert files_in(tmp_path / "model") == FILES
    again = load(tmp_path / "model")
    assert describe(again) == describe(model)
    ours, theirs = again.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key], tensor)
    assert torch.equal(logits(again.eval(), ids), logits(model, ids))
    save(again, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "model")


def test_what_is_shared_stays_shared_and_trains_as_one(tmp_path):
    save(rolling(), tmp_path / "model")
    again = load(tmp_path / "model")
    first, second = again.layers[0].sublayers, again.layers[1].sublayers
    assert first[1].sublayer.bank is second[2].sublayer.bank is again.banks[0]
    assert again.head.embedding is again.embedding
    ids = token_ids(2, 9)
    again(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in again.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_source_rebuilds_an_equal_model(name):
    model, ids = MODELS[name](), token_ids(2, 7)
    scope = {}
    exec(to_source(model), scope)
    again = scope["model"].eval()
    assert describe(again) == describe(model) == as_json(describe(model))
    assert repr(again) == repr(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_saved_model_is_replaced_as_a_whole(tmp_path, monkeypatch):
    model, ids = rolling(), token_ids(2, 5)
    save(model, tmp_path / "model")
    old = contents(tmp_path / "model")
    randomize(model.parameters())

    def refuse(source, target):
        raise OSError(5, "Input/output error", str(source))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        save(model, tmp_path / "model")
    monkeypatch.undo()
    assert files_in(tmp_path) == ["model"]
    assert contents(tmp_path / "model") == old
    save(model, tmp_path / "model")
    assert files_in(tmp_path) == ["model"]
    assert torch.equal(logits(load(tmp_path / "model").eval(), ids), logits(model, ids))


def test_other_folders_are_left_alone(tmp_path):
    save(adapter_on(llama()), tmp_path / "memory")
    save(rolling(), tmp_path / "model")
    text = (
        r"^save: path must be free, empty or hold a saved model and nothing else, "
        r"got path='.*/memory', also there=\['memory.json', 'memory.safetensors'\]; choose"
    )
    with pytest.raises(ValueError, match=text):
        save(rolling(), tmp_path / "memory")
    with pytest.raises(ValueError, match="hold a saved memory and nothing else, got path='.*/mod"):
        save(adapter_on(llama()), tmp_path / "model")
    text = r"^load: a model has config.json and model.safetensors, got path='.*' without config.j"
    with pytest.raises(FileNotFoundError, match=text):
        load(tmp_path / "memory")
    with pytest.raises(FileNotFoundError, match=r"^load_adapter: a memory has memory.json"):
        load_adapter(tmp_path / "model", llama())


@pytest.fixture
def saved(tmp_path):
    save(rolling(), tmp_path / "model")
    return tmp_path / "model"


def edit_header(folder, edit):
    path = folder / "config.json"
    header = json.loads(path.read_text(encoding="utf-8"))
    edit(header)
    path.write_text(json.dumps(header), encoding="utf-8")


def rewrite_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_header(folder, lambda header: header.update(sha256=sha256))


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-8], lambda d: d[:-9] + b"x" + d[-8:], bytes.lower]
)
def test_damaged_tensors_are_refused(saved, damage):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    text = r"^load: model.safetensors must have the sha256 that config.json records, [0-9a-f]{64}"
    with pytest.raises(ValueError, match=text):
        load(saved)


BANK = "model.banks.0.tokens"
TENSORS = {
    "missing": (lambda tensors: tensors.pop(BANK), "got missing=['banks.0.tokens'];"),
    "unexpected": (
        lambda tensors: tensors.update(extra=torch.ones(1)),
        "got unexpected=['extra'];",
    ),
    "reshaped": (
        lambda tensors: tensors.update({BANK: tensors[BANK].reshape(6, 36)}),
        "got mismatched={'banks.0.tokens': {'spec': (36, 6), 'file': (6, 36)}};",
    ),
    "of another kind": (
        lambda tensors: tensors.update({BANK: tensors[BANK].int()}),
        "got not_floating=['banks.0.tokens'];",
    ),
}


@pytest.mark.parametrize(("edit", "text"), TENSORS.values(), ids=TENSORS)
def test_other_tensors_are_refused(saved, edit, text):
    rewrite_tensors(saved, edit)
    rule = "load: model.safetensors must hold exactly the tensors of the spec, "
    with pytest.raises(ValueError, match=f"^{re.escape(rule + text)}"):
        load(saved)


HEADERS = {
    "no spec": (lambda header: header.pop("spec"), "config.json must hold 'spec', 'sha256' and "),
    "no checksum": (lambda header: header.pop("sha256"), "config.json must hold 'spec', 'sha"),
    "another number": (
        lambda header: header["spec"]["model"]["arguments"]["norm"]["arguments"].update(eps=0.5),
        "the spec of config.json must have its spec_sha256, ",
    ),
    "a part alone": (
        lambda header: header.update(spec=describe(BANKS["reduced"]())),
        "the folder must hold a whole model, got class='ReducedDimMemoryBank'; load a memory with",
    ),
    "huge": (
        lambda header: header["spec"]["shared"]["bank"]["arguments"].update(
            num_memory_tokens=9 * 10**30
        ),
        "the spec must describe tensors that can be, got error=",
    ),
}


@pytest.mark.parametrize(("edit", "text"), HEADERS.values(), ids=HEADERS)
def test_other_headers_are_refused(saved, edit, text):
    edit_header(saved, edit)
    with pytest.raises(ValueError, match=f"^load: {re.escape(text)}"):
        load(saved)


SPEC = as_json(describe(rolling()))


def arguments_of(spec):
    return spec["model"]["arguments"]


def read(spec):
    """The routed reader of the first block."""
    residual = arguments_of(spec)["layers"][0]["arguments"]["sublayers"][1]
    return residual["arguments"]["sublayer"]["arguments"]


def router(spec):
    return read(spec)["router"]["arguments"]


def attention(spec):
    residual = arguments_of(spec)["layers"][0]["arguments"]["sublayers"][0]
    return residual["arguments"]["sublayer"]["arguments"]


def bank(spec):
    return spec["shared"]["bank"]["arguments"]


def put(place, key, value):
    def edit(spec):
        place(spec)[key] = value

    return edit


def part(name, arguments):
    return {"class": name, "arguments": arguments}


READ = r"at model.layers\[0\].sublayers\[1\].sublayer"
EMPTY = part("Zeros", {})
WRONG = {
    "an unknown strategy": (
        put(router, "strategy", part("RandomRouting", {})),
        rf"build: {READ}.router.strategy: class must be one of {', '.join(sorted(CLASSES))}, "
        "got value='RandomRouting'",
    ),
    "a number for a strategy": (
        put(router, "strategy", 3),
        rf"build: {READ}.router.strategy: must be RoutingStrategy, got value=3;",
    ),
    "text for a mixing": (
        put(read, "mixing", "JointSoftmax"),
        rf"build: {READ}.mixing: must be Mixing, got value='JointSoftmax';",
    ),
    "a bank for a router": (
        put(read, "router", {"shared": "bank"}),
        rf"build: {READ}.router: must be ChapterRouter, got value=StandardMemoryBank",
    ),
    "a window of text": (
        put(lambda spec: router(spec)["strategy"]["arguments"], "window", "3"),
        rf"build: {READ}.router.strategy.window: must be int, got value='3';",
    ),
    "a part for losses": (
        put(router, "losses", EMPTY),
        rf"build: {READ}.router.losses: must be list",
    ),
    "an initialiser among losses": (
        put(router, "losses", [EMPTY]),
        rf"build: {READ}.router.losses: must be list",
    ),
    "more chapters than divide": (
        put(bank, "num_memory_tokens", 37),
        "RoutedMemoryCrossAttention: the memory tokens must divide into chapters of equal size, "
        "got bank.num_memory_tokens=37, router.num_chapters=9;",
    ),
    "more chapters chosen than there are": (
        put(router, "top_k", 9),
        r"ChapterRouter: top_k must not exceed the routed chapters, .* got top_k=9, routed",
    ),
    "a head that is a norm": (
        put(arguments_of, "head", part("RMSNorm", {"dim": 8, "eps": 1e-5})),
        r"build: at model.head: must be Projection, got value=RMSNorm\(dim=8, eps=1e-05\);",
    ),
    "a head of another vocabulary": (
        put(lambda spec: spec["shared"]["embedding"]["arguments"], "vocab_size", 0),
        "TokenEmbedding: vocab_size must be an integer of at least 1, got vocab_size=0;",
    ),
    "no layers": (
        put(arguments_of, "layers", []),
        "MemoryTransformer: layers must be at least one",
    ),
    "a number among layers": (
        put(arguments_of, "layers", [7]),
        "build: at model.layers: must be list",
    ),
    "a bank that is not listed": (
        put(arguments_of, "banks", []),
        "MemoryTransformer: banks must list every bank that a layer reads, got banks=0",
    ),
    "positions that are a norm": (
        put(attention, "rotary", part("RMSNorm", {"dim": 8, "eps": 1e-5})),
        r"build: at model.layers\[0\].sublayers\[0\].sublayer.rotary: must be Positions, got",
    ),
    "heads of another width": (
        put(lambda spec: attention(spec)["rotary"]["arguments"], "head_dim", 6),
        "RotaryEmbedding: head_dim must be the width of the heads, got head_dim=6, q_proj",
    ),
    "an argument too many": (
        put(attention, "causal", True),
        r"build: at model.layers\[0\].sublayers\[0\].sublayer: SelfAttention takes exactly the "
        "arguments q_proj, k_proj, v_proj, o_proj, num_heads, num_kv_heads, rotary, dropout, got",
    ),
}


@pytest.mark.parametrize(("edit", "text"), WRONG.values(), ids=WRONG)
def test_spec_edited_by_hand_is_refused(edit, text):
    spec = copy.deepcopy(SPEC)
    build(spec)
    edit(spec)
    with pytest.raises(ValueError, match=f"^{text}"):
        build(spec)


def test_number_for_an_activation_is_refused():
    spec = as_json(describe(working(stacks.plain_arguments())))
    network = arguments_of(spec)["layers"][0]["arguments"]["sublayers"][1]["arguments"]["sublayer"]
    network["arguments"]["activation"] = 3
    with pytest.raises(ValueError, match="activation: must be Activation, got value=3;"):
        build(spec)
