"""A folder is checked without running it, and everything that is wrong is said at once."""

import json
import re
import shutil
import tracemalloc
from functools import reduce
from operator import getitem
from unittest.mock import create_autospec

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from memtx import MemoryAdapter, cli, save, verify
from memtx.spec.files import checksum
from tests.huggingface.faces import MODELS
from tests.spec.models import (
    adapter_on,
    adapter_reading,
    edit_header,
    quantized_bank,
    rewrite_tensors,
    same_llama,
)

HUGE = 10**12
BANK = "banks.0.tokens"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memories") / "memory"
    base = get_peft_model(same_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter_on(base).save_pretrained(folder, training={"steps": 3})
    return folder


@pytest.fixture
def memory(written, tmp_path):
    shutil.copytree(written, tmp_path / "memory")
    return tmp_path / "memory"


# peft asks transformers by a name that transformers has since changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_a_sound_memory(memory):
    header = json.loads((memory / "memory.json").read_text(encoding="utf-8"))
    del header["base"]["weights"]
    kept = ("memtx", "base", "dtype", "training", "lora", "sha256")
    assert verify(memory) == {
        "path": str(memory),
        "kind": "memory",
        "sound": True,
        "trouble": [],
        **{key: header[key] for key in kept},
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_a_sound_memory_of_a_quantized_bank(tmp_path, bits):
    save(adapter_reading(quantized_bank(bits)), tmp_path / "memory")
    report = verify(tmp_path / "memory")
    assert report["sound"], report["trouble"]
    assert set(report["dtype"]) == {"float32", "uint8"}


def test_a_sound_model(tmp_path):
    save(next(iter(MODELS.values()))(), tmp_path / "model")
    report = verify(tmp_path / "model")
    assert (report["kind"], report["sound"], report["trouble"]) == ("model", True, [])
    assert report["dtype"] == {
        "float32": sum(p.numel() for p in next(iter(MODELS.values()))().parameters())
    }


def test_nothing_is_run_and_no_base_is_made(memory, monkeypatch):
    for cls, name in (
        (torch.nn.Module, "__call__"),
        (MemoryAdapter, "__init__"),
        (LlamaForCausalLM, "__init__"),
        (torch.nn.Module, "load_state_dict"),
    ):
        # With the signature it has, against which a spec is checked.
        stopped = create_autospec(getattr(cls, name), side_effect=RuntimeError(f"{name} was run"))
        monkeypatch.setattr(cls, name, stopped)
    report = verify(memory)
    assert report["sound"], report["trouble"]


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "a byte of the tensors": (
        lambda folder: flip(folder / "memory.safetensors", -20),
        "verify: memory.safetensors must have the sha256 that memory.json records, ",
    ),
    "a byte of the LoRA": (
        lambda folder: flip(folder / "lora" / "adapter_model.safetensors", -20),
        "verify: lora/adapter_model.safetensors must have the sha256 that memory.json records, ",
    ),
    "no tensors": (
        lambda folder: (folder / "memory.safetensors").unlink(),
        "verify: a memory has memory.json and memory.safetensors, got path=",
    ),
    "no LoRA": (
        lambda folder: shutil.rmtree(folder / "lora"),
        "verify: the memory was saved with a LoRA in lora/, got path=",
    ),
    "no header": (
        lambda folder: (folder / "memory.json").unlink(),
        "verify: a memory has memory.json and memory.safetensors, got path=",
    ),
    "a header that is no JSON": (
        lambda folder: (folder / "memory.json").write_text("{", encoding="utf-8"),
        "verify: memory.json must be JSON, got path=",
    ),
    "a tensor deleted": (
        lambda folder: rewrite_tensors(folder, lambda tensors: tensors.pop(BANK)),
        "verify: memory.safetensors must hold exactly the tensors of the spec, got missing=",
    ),
    "a tensor added": (
        lambda folder: rewrite_tensors(folder, lambda tensors: tensors.update(x=torch.ones(1))),
        "verify: memory.safetensors must hold exactly the tensors of the spec, got unexpected=['x'",
    ),
    "tensors of a dtype that none has": (
        lambda folder: rewrite_tensors(
            folder, lambda tensors: tensors.update({BANK: tensors[BANK].to(torch.float8_e4m3fn)})
        ),
        f"verify: the dtype of a tensor must be one of BOOL, U8, I8, I16, F16, BF16, I32, F32, "
        f"F64, I64, got tensor='{BANK}', dtype='F8_E4M3'; save it again.",
    ),
    "tensors of another dtype": (
        lambda folder: rewrite_tensors(
            folder, lambda tensors: tensors.update({BANK: tensors[BANK].half()})
        ),
        "verify: memory.safetensors must hold as many numbers of each dtype as memory.json "
        "records, got file={'float16': 224, 'float32': ",
    ),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGES.values(), ids=DAMAGES)
def test_damage(memory, damage, text):
    damage(memory)
    report = verify(memory)
    assert not report["sound"]
    (trouble,) = report["trouble"]
    assert trouble.startswith(text)


def with_tokens(number):
    return lambda spec: spec["shared"]["bank"]["arguments"].update(num_memory_tokens=number)


def first_in_layer(number):
    insertions = ["model", "arguments", "insertions"]
    return lambda spec: reduce(getitem, insertions, spec)[0]["arguments"].update(layer=number)


def other_base(spec):
    spec["model"]["arguments"]["base"]["base"]["architecture"] = "MistralForCausalLM"


SPECS = {
    "too many tokens": (
        with_tokens(HUGE),
        f"mismatched={{'{BANK}': {{'spec': ({HUGE}, 32), 'file': (7, 32)}}}}",
    ),
    "more than can be counted": (
        with_tokens(10**30),
        "verify: the spec must describe tensors that can be, got error=",
    ),
    "no such class": (
        lambda spec: spec["shared"]["bank"].update({"class": "os.system"}),
        "build: at shared.bank: class must be one of",
    ),
    "no such layer": (
        first_in_layer(3),
        "verify: an insertion must lie in a layer of the recorded base and have its hidden size, "
        "got layer=3, dim=32, sizes=",
    ),
    "one place twice": (
        first_in_layer(2),
        "verify: only one insertion may stand at each layer and site, got places=[(2, 'Site.",
    ),
    "a bank that is not owned": (
        lambda spec: spec["model"]["arguments"].update(banks=[]),
        "verify: banks must",
    ),
    "two bases": (other_base, "verify: spec and base of memory.json must name one base, got spec="),
    "no insertions at all": (
        lambda spec: spec["model"]["arguments"].update(insertions=7),
        "build: at model.insertions: must be",
    ),
}


@pytest.mark.parametrize(("edit", "text"), SPECS.values(), ids=SPECS)
def test_a_spec_that_is_not_sound(memory, edit, text):
    edit_header(memory, lambda header: edit(header["spec"]))
    tracemalloc.start()
    report = verify(memory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not report["sound"]
    assert text in report["trouble"][0]
    assert peak < 2**24


def test_all_that_is_wrong_is_said_at_once(memory):
    flip(memory / "memory.safetensors", -20)
    flip(memory / "lora" / "adapter_config.json", -2)
    edit_header(memory, lambda header: with_tokens(8)(header["spec"]))
    assert len(verify(memory)["trouble"]) == 3


def test_a_model_whose_tensors_are_others(tmp_path):
    save(next(iter(MODELS.values()))(), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["extra"] = torch.ones(1)
    save_file(tensors, path)
    header = tmp_path / "model" / "config.json"
    config = json.loads(header.read_text(encoding="utf-8"))
    header.write_text(json.dumps(config | {"sha256": checksum(path)}), encoding="utf-8")
    (trouble,) = verify(tmp_path / "model")["trouble"]
    assert "verify: model.safetensors must hold exactly" in trouble
    assert "unexpected=['extra']" in trouble


def test_a_model_whose_spec_is_another_sound_one(tmp_path):
    save(next(iter(MODELS.values()))(), tmp_path / "model")
    header = tmp_path / "model" / "config.json"
    text = header.read_text(encoding="utf-8")
    header.write_text(text.replace('"eps": 1e-05', '"eps": 1e-04'), encoding="utf-8")
    (trouble,) = verify(tmp_path / "model")["trouble"]
    assert trouble.startswith("verify: the spec of config.json must have its spec_sha256, ")


def test_the_command(memory, capsys):
    assert cli.run(["verify", str(memory)]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        rf"{memory}: a sound memory of [\d,]+ float32, sha256 [0-9a-f]{{64}}\n", out
    )
    flip(memory / "memory.safetensors", -20)
    assert cli.run(["verify", str(memory)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{memory}: not sound\nverify: memory.safetensors must have")


def test_the_command_writes_json(memory, capsys):
    assert cli.run(["verify", str(memory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == verify(memory)
    (memory / "memory.json").unlink()
    assert cli.run(["verify", "--json", str(memory)]) == 1
    assert json.loads(capsys.readouterr().out)["sound"] is False


def test_the_command_needs_a_path():
    with pytest.raises(SystemExit) as caught:
        cli.run(["verify"])
    assert caught.value.code == 2
