"""Files of rows: what a bank and what chunks make, of any kind, and what is refused."""

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from memtx import (
    FactorizedMemoryBank,
    Normal,
    QuantizedMemoryBank,
    StandardMemoryBank,
    write_bank,
    write_rows,
)
from memtx.ops.tensor_files import sha256_of
from tests.memory.distant import BANKS, mapped, offloaded, outline
from tests.parts import bank_of

each_bank = pytest.mark.parametrize("make", BANKS.values(), ids=BANKS)


def same(found, wanted):
    return set(found) == set(wanted) and all(torch.equal(found[k], wanted[k]) for k in wanted)


@each_bank
def test_a_bank_is_written_as_it_is_wherever_it_lies(make, tmp_path):
    bank, path = make(), tmp_path / "file"
    sha256 = write_bank(bank=bank, path=path)
    assert sha256 == sha256_of(path)
    assert same(load_file(path), bank.state_dict())
    for elsewhere in (offloaded(bank, 2), mapped(bank, 2, tmp_path)):
        assert write_bank(bank=elsewhere, path=path) == sha256


@each_bank
@pytest.mark.parametrize("cuts", [[48], [1, 5, 30, 12], [16, 16, 16], [0, 47, 0, 1]])
def test_chunks_make_the_bank(make, cuts, tmp_path):
    """Rows cut anywhere; a block may lie in two chunks."""
    torch.manual_seed(3)
    bank, stored = make(), outline(make())
    if isinstance(bank, QuantizedMemoryBank):
        rows = torch.randn(48, 32).to(bank.scales.dtype)
        source = StandardMemoryBank(num_memory_tokens=48, dim=32, init=Normal(std=1.0)).to(rows)
        source.tokens.data.copy_(rows)
        bank = QuantizedMemoryBank.from_bank(
            bank=source, bits=bank.bits, block_size=bank.block_size
        )
    else:
        rows = getattr(bank, "coordinates", getattr(bank, "tokens", None)).detach()
    if isinstance(bank, FactorizedMemoryBank):
        stored.directions = bank.directions
    stored.to(rows.dtype)
    write_rows(stored=stored, chunks=iter(rows.split(cuts)), path=tmp_path / "file")
    assert same(load_file(tmp_path / "file"), bank.state_dict())


def test_the_outline_says_the_dtype(tmp_path):
    stored = outline(bank_of(8, 4)).to(torch.bfloat16)
    rows = torch.randn(8, 4)
    write_rows(stored=stored, chunks=[rows], path=tmp_path / "file")
    assert torch.equal(load_file(tmp_path / "file")["tokens"], rows.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("chunks", "got"),
    [
        ([torch.ones(7, 4)], "got rows=7;"),
        ([torch.ones(5, 4), torch.ones(4, 4)], "got rows='9 or more';"),
        ([torch.ones(8, 3)], r"got shape=(8, 3), dtype='torch.float32';"),
        ([torch.ones(8)], r"got shape=(8,), dtype='torch.float32';"),
        ([torch.ones(8, 4, dtype=torch.long)], r"got shape=(8, 4), dtype='torch.int64';"),
    ],
)
@pytest.mark.parametrize("kind", ["standard", "8 bits"])
def test_wrong_chunks_are_refused(chunks, got, kind, tmp_path):
    with torch.device("meta"):
        stored = (
            StandardMemoryBank(num_memory_tokens=8, dim=4, init=Normal(std=1.0))
            if kind == "standard"
            else QuantizedMemoryBank(num_memory_tokens=8, dim=4, bits=8, block_size=64)
        )
    with pytest.raises(ValueError, match=f"^write_rows: .*, {re.escape(got)}"):
        write_rows(stored=stored, chunks=chunks, path=tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_row_must_hold_numbers(tmp_path):
    stored = outline(BANKS["factorized"]())
    text = "^write_rows: what is no row must hold numbers, got directions='meta';"
    with pytest.raises(ValueError, match=text):
        write_rows(stored=stored, chunks=[torch.ones(48, 2)], path=tmp_path / "file")


def test_other_banks_and_places_are_refused(tmp_path):
    text = "^write_bank: stored must be .*, got stored='Linear';"
    with pytest.raises(ValueError, match=text):
        write_bank(bank=nn.Linear(2, 2), path=tmp_path / "file")
    for path in (tmp_path, tmp_path / "no folder" / "file"):
        text = f"^write_bank: path must be a file in a folder .*, got path='{path}';"
        with pytest.raises(ValueError, match=text):
            write_bank(bank=bank_of(8, 4), path=path)


def test_a_path_of_text_will_do(tmp_path):
    write_bank(bank=bank_of(8, 4), path=str(tmp_path / "file"))
    assert (tmp_path / "file").is_file()
