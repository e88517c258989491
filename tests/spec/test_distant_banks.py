"""Memories whose banks lie elsewhere: saved as any other, loaded where they lie, checked."""

import pytest
import torch
from safetensors.torch import load_file

from memtx import (
    FactorizedMemoryBank,
    Insertion,
    MappedMemoryBank,
    MemoryAdapter,
    Normal,
    OffloadedMemoryBank,
    QuantizedMemoryBank,
    RollingRouting,
    Site,
    load,
    load_adapter,
    save,
    to_source,
    verify,
)
from memtx.memory import JointSoftmax
from tests.adapters.bases import HIDDEN, logits, token_ids
from tests.memory.distant import mapped
from tests.parts import bank_of, randomize
from tests.routing import TOKENS, recall, transformer
from tests.spec.models import edit_header, rewrite_tensors, same_llama

NUM = 48


def distant_banks(folder):
    factorized = FactorizedMemoryBank(num_memory_tokens=NUM, dim=6, rank=2, init=Normal(std=1.0))
    small = QuantizedMemoryBank.from_bank(bank=bank_of(NUM, 32), bits=8, block_size=64)
    return {
        "offloaded": OffloadedMemoryBank(
            stored=bank_of(NUM, 6), tokens_per_chapter=TOKENS, num_resident_chapters=3
        ),
        "mapped": mapped(bank_of(NUM, 6), 3, folder),
        "mapped, factorized": mapped(factorized, 3, folder),
        "mapped, 8 bits": mapped(small, 3, folder),
    }


NAMES = ("offloaded", "mapped", "mapped, factorized", "mapped, 8 bits")
each_bank = pytest.mark.parametrize("name", NAMES)


def adapter_with(bank):
    read = {"strategy": RollingRouting(window=3), "mixing": JointSoftmax(), "losses": []}
    adapter = MemoryAdapter(
        base=same_llama(),
        banks=[bank],
        insertions=[
            Insertion(
                layer=layer,
                site=Site.AFTER_ATTENTION,
                sublayers=[recall(bank, HIDDEN, **read)],
            )
            for layer in (0, 1)
        ],
    ).eval()
    randomize(parameter for each in adapter.insertions for parameter in each.parameters())
    return adapter


@each_bank
def test_a_memory_is_loaded_as_it_was(name, tmp_path):
    adapter, ids = adapter_with(distant_banks(tmp_path)[name]), token_ids(2, 9)
    folder = tmp_path / "memory"
    save(adapter, folder)
    report = verify(folder)
    assert report["trouble"] == []
    again = load_adapter(folder, same_llama()).eval()
    assert repr(again) == repr(adapter)
    bank = again.banks[0]
    assert bank is again.insertions[1].sublayers[0].sublayer.bank
    assert isinstance(bank, OffloadedMemoryBank) or bank.in_file
    with torch.no_grad():
        assert torch.equal(logits(again, ids), logits(adapter, ids))
    save(again, folder)  # over the file that it reads
    assert verify(folder)["sha256"] == report["sha256"]
    with torch.no_grad():
        assert torch.equal(logits(again, ids), logits(adapter, ids))
    kept = load_file(folder / "memory.safetensors")
    assert {each for each in kept if each.startswith("banks.0.")} == {
        f"banks.0.{each}" for each in bank.state_dict()
    }


def test_a_whole_model_is_loaded_as_it_was(tmp_path):
    model = transformer(RollingRouting(window=3), losses=[])
    ids = torch.randint(0, 64, (2, 8))
    bank = mapped(model.banks[0], 4, tmp_path)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    model.banks[0] = bank
    for part in list(model.modules()):
        if hasattr(part, "router"):
            part.bank = bank
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted)
    save(model, tmp_path / "model")
    assert verify(tmp_path / "model")["trouble"] == []
    again = load(tmp_path / "model").eval()
    assert again.banks[0].in_file
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, wanted)
    scope = {}
    exec(to_source(model), scope)
    assert isinstance(scope["model"].banks[0], MappedMemoryBank)


@pytest.mark.parametrize("name", ["mapped", "mapped, 8 bits"])
def test_wrong_files_are_refused(name, tmp_path):
    save(adapter_with(distant_banks(tmp_path)[name]), tmp_path / "memory")
    tensors = tmp_path / "memory" / "memory.safetensors"
    key = {"mapped": "banks.0.stored.tokens", "mapped, 8 bits": "banks.0.stored.codes"}[name]
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="memory.safetensors must have the sha256"):
        load_adapter(tmp_path / "memory", same_llama())
    tensors.write_bytes(whole)
    shape = load_file(tensors)[key].shape
    changes = {
        "missing": lambda found: found.pop(key),
        "mismatched": lambda found: found.update({key: found[key][:-1]}),
        "not_floating|of_another_dtype": lambda found: found.update(
            {key: torch.zeros(shape, dtype=torch.int32)}
        ),
    }
    for trouble, change in changes.items():
        tensors.write_bytes(whole)
        rewrite_tensors(tmp_path / "memory", change)
        with pytest.raises(ValueError, match=f"got .*({trouble})=?.*{key}"):
            load_adapter(tmp_path / "memory", same_llama())
        assert not verify(tmp_path / "memory")["sound"]
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"without memory\.safetensors"):
        load_adapter(tmp_path / "memory", same_llama())


def test_chapters_that_a_spec_invents_are_refused(tmp_path):
    save(adapter_with(distant_banks(tmp_path)["mapped"]), tmp_path / "memory")

    def edit(header):
        header["spec"]["shared"]["bank"]["arguments"]["tokens_per_chapter"] = 5

    edit_header(tmp_path / "memory", edit)
    with pytest.raises(ValueError, match="MappedMemoryBank: .*, got .*tokens_per_chapter=5"):
        load_adapter(tmp_path / "memory", same_llama())
