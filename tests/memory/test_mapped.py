"""Banks in a file: equal to the plain ones, little memory, and no training."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from memtx import (
    FactorizedMemoryBank,
    JointSoftmax,
    MappedMemoryBank,
    Normal,
    RollingRouting,
    StandardMemoryBank,
)
from tests.memory.distant import BANKS, CHAPTER, NUM, mapped, outline
from tests.memory.test_offloaded import INDICES
from tests.parts import bank_of
from tests.routing import CHAPTERS, TOKENS, reader
from tests.rules.source import ROOT

each_bank = pytest.mark.parametrize("make", BANKS.values(), ids=BANKS)


@pytest.mark.shapes
@each_bank
@pytest.mark.parametrize("places", [1, NUM // CHAPTER])
def test_rows_are_those_of_the_plain_bank(make, places, tmp_path):
    bank = make()
    distant = mapped(bank, places, tmp_path)
    assert distant.in_file
    for indices in INDICES * 2:
        chosen = torch.tensor(indices, dtype=torch.long)
        with torch.no_grad():
            wanted = bank.rows(chosen)
        found = distant.rows(chosen)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
        assert not found.requires_grad
    numbers = torch.tensor([4, 11, 4])
    with torch.no_grad():
        wanted = bank.rows(numbers[:, None] * CHAPTER + torch.arange(CHAPTER))
    assert torch.equal(distant.chapters(numbers, CHAPTER), wanted)
    if places > 1:
        assert torch.equal(distant(), bank())
    else:
        text = "^MappedMemoryBank: all tokens .*, got chapters=12, num_resident_chapters=1;"
        with pytest.raises(ValueError, match=text):
            distant()


def test_only_what_is_read_is_looked_up(tmp_path):
    bank = mapped(bank_of(NUM, 6), 2, tmp_path)
    bank.rows(torch.tensor([0, 1, 9]))
    bank.fetch_ahead(torch.tensor([2, 13]))
    bank._distant.residents.on(
        torch.device("cpu"), rows={"tokens": bank.stored.tokens}, entries=4
    ).settle()
    assert vars(bank.traffic) == {"hits": 0, "misses": 2, "fetched_ahead": 1, "bytes_moved": 288}


@each_bank
def test_nothing_reaches_the_rows(make, tmp_path):
    """No optimizer, no move, no copy; `to` says in which dtype tokens come."""
    bank = make()
    distant = mapped(bank, 2, tmp_path)
    assert list(distant.parameters()) == []
    held = {name: getattr(distant.stored, name) for name in distant._distant.layout.names}
    distant.to(torch.float64)
    again = copy.deepcopy(distant)
    for name, each in held.items():
        assert getattr(distant.stored, name) is each
        assert getattr(again.stored, name) is each
    for each in (distant, again):
        found = each.rows(torch.tensor([3, 40]))
        assert found.dtype == torch.float64
        torch.testing.assert_close(
            found, bank.rows(torch.tensor([3, 40])).detach().double(), rtol=1e-2, atol=1e-2
        )


def test_training_is_refused(tmp_path):
    bank = mapped(bank_of(NUM, 4), 2, tmp_path)
    text = "^MappedMemoryBank: rows in a file are for reading only, got requires_grad=True;"
    for wanted in ([], [True]):
        with pytest.raises(ValueError, match=text):
            bank.requires_grad_(*wanted)
    with pytest.raises(ValueError, match=text):
        bank.requires_grad_(requires_grad=True)
    assert bank.requires_grad_(False) is bank


def test_a_reader_learns_and_the_bank_does_not(tmp_path):
    bank = bank_of(CHAPTERS * TOKENS, 6)
    plain = reader(RollingRouting(window=3), JointSoftmax(), {"bank": bank})
    distant = copy.deepcopy(plain)
    distant.bank = mapped(bank, 4, tmp_path)
    x = torch.randn(2, 7, 8)
    for each in (plain, distant):
        each(x).pow(2).sum().backward()
    for name, mine in distant.named_parameters():
        assert torch.equal(mine.grad, plain.get_parameter(name).grad), name


def test_state_can_be_had_and_given(tmp_path):
    bank = mapped(BANKS["factorized"](), 2, tmp_path)
    state = bank.state_dict()
    assert set(state) == {"stored.coordinates", "stored.directions"}
    again = MappedMemoryBank(
        stored=BANKS["factorized"](), tokens_per_chapter=CHAPTER, num_resident_chapters=2
    )
    assert not again.in_file
    again.load_state_dict(state)
    index = torch.tensor([5, 33])
    assert torch.equal(again.rows(index), bank.rows(index))
    assert not again.in_file  # copied, as a load does
    again.load_state_dict(state, assign=True)
    assert again.in_file
    with pytest.raises(RuntimeError, match="Missing key.*stored.coordinates"):
        again.load_state_dict({"stored.directions": state["stored.directions"]})
    with pytest.raises(RuntimeError, match="size mismatch for stored.coordinates"):
        again.load_state_dict(state | {"stored.coordinates": torch.zeros(3, 2)})
    with pytest.raises(RuntimeError, match="Unexpected key.*stored.other"):
        again.load_state_dict(state | {"stored.other": torch.zeros(3, 2)})
    whole = nn.ModuleDict({"bank": again})
    whole.load_state_dict({f"bank.{name}": each for name, each in state.items()}, assign=True)
    assert again.in_file


def opened(path, sha256, stored):
    return MappedMemoryBank.from_file(
        path=path, sha256=sha256, stored=stored, tokens_per_chapter=4, num_resident_chapters=2
    )


def test_wrong_files_are_refused(tmp_path):
    bank = BANKS["8 bits"]()
    path = tmp_path / "bank.safetensors"
    with pytest.raises(FileNotFoundError, match=r"^MappedMemoryBank: .*, got path='.*bank.saf.*'"):
        opened(path, None, outline(bank))
    whole = dict(bank.state_dict())
    trouble = {
        "codes": whole["codes"][:-1],
        "scales": whole["scales"].to(torch.uint8),
    }
    for name, wrong in trouble.items():
        save_file(whole | {name: wrong}, path)
        text = (
            rf"^MappedMemoryBank: bank.safetensors must hold exactly .*{name}.*, got file=.*{name}"
        )
        with pytest.raises(ValueError, match=text):
            opened(path, None, outline(bank))
    save_file({"codes": whole["codes"]}, path)
    with pytest.raises(ValueError, match=r"got file=\{'codes': 'torch.uint8 \[24, 64\]'\}"):
        opened(path, None, outline(bank))
    save_file(whole | {"more": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"got file=.*'more': 'floating \[1\]'"):
        opened(path, None, outline(bank))
    save_file(whole, path)
    wrong = "0" * 64
    text = (
        f"^MappedMemoryBank: bank.safetensors must have the sha256 {wrong}, got sha256='[0-9a-f]+';"
    )
    with pytest.raises(ValueError, match=text):
        opened(path, wrong, outline(bank))
    path.write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        opened(path, None, outline(bank))


def test_another_floating_dtype_is_as_good(tmp_path):
    tokens = torch.randn(NUM, 4).half()
    save_file({"tokens": tokens}, tmp_path / "bank")
    with torch.device("meta"):
        stored = StandardMemoryBank(num_memory_tokens=NUM, dim=4, init=Normal(std=1.0))
    found = opened(tmp_path / "bank", None, stored).rows(torch.tensor([3]))
    assert torch.equal(found, tokens[3:4])


def test_other_constructions_are_refused():
    text = "^MappedMemoryBank: stored must be .*, got stored='Linear';"
    with pytest.raises(ValueError, match=text):
        MappedMemoryBank(stored=nn.Linear(2, 2), tokens_per_chapter=4, num_resident_chapters=2)
    with pytest.raises(ValueError, match="got num_memory_tokens=8, tokens_per_chapter=3;"):
        MappedMemoryBank(stored=bank_of(8, 2), tokens_per_chapter=3, num_resident_chapters=2)
    text = r"^MappedMemoryBank: num_resident_chapters must be .*, got num_resident_chapters=0;"
    with pytest.raises(ValueError, match=text):
        MappedMemoryBank(stored=bank_of(8, 2), tokens_per_chapter=4, num_resident_chapters=0)
    with torch.device("meta"):
        stored = FactorizedMemoryBank(num_memory_tokens=8, dim=4, rank=2, init=Normal(std=1.0))
        bank = MappedMemoryBank(stored=stored, tokens_per_chapter=4, num_resident_chapters=2)
    with pytest.raises(ValueError, match="got coordinates='meta';"):
        bank.rows(torch.tensor([0]))
    text = rf"^MappedMemoryBank: an index must lie in \[-8, 8\), got index={2**33};"
    with pytest.raises(IndexError, match=text):
        MappedMemoryBank(stored=bank_of(8, 2), tokens_per_chapter=4, num_resident_chapters=2).rows(
            torch.tensor([2**33])
        )


def test_resident_memory_stays_far_below_the_bank(tmp_path):
    """A bank of 384 MiB is written, saved, loaded and read in a process that grows by far less."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of a process is told in other units elsewhere")
    command = [sys.executable, "-m", "tests.memory.large_bank", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        pytest.fail(ran.stderr, pytrace=False)
    (growth,) = re.findall(r"grew by (\d+) MiB of 384", ran.stdout)
    assert int(growth) < 100
