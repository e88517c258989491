"""Files in pieces: the bytes of safetensors itself, numbers read in place, and what is refused."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtx.ops.tensor_files import (
    DTYPES,
    TensorWriter,
    is_mapped,
    mapped_tensors,
    release,
    sha256_of,
    will_need,
)

STATUS = Path("/proc/self/smaps_rollup")


def of_all_dtypes():
    numbers = torch.arange(60).view(3, 4, 5) % 7
    tensors = {f"in {name}": (numbers - 3).to(dtype) for name, dtype in DTYPES.items()}
    return {"ä": torch.ones(1), "scalar": torch.tensor(2.5), **tensors, "none": torch.empty(0, 3)}


def test_bytes_are_those_of_safetensors(tmp_path):
    tensors = of_all_dtypes()
    save_file(tensors, tmp_path / "wanted", metadata={"format": "pt"})
    with TensorWriter(path=tmp_path / "mine", outlines=tensors) as file:
        for name, each in reversed(tensors.items()):
            file.append(name, each)
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "wanted").read_bytes()
    assert sha256_of(tmp_path / "mine") == sha256_of(tmp_path / "wanted")


def test_pieces_make_the_whole(tmp_path):
    """Interleaved, of any length, and not contiguous."""
    rows, others = torch.randn(2, 10).T, torch.arange(10)
    outlines = {"rows": torch.empty(10, 2, device="meta"), "others": others}
    with TensorWriter(path=tmp_path / "file", outlines=outlines) as file:
        for start, end in ((0, 3), (3, 3), (3, 10)):
            file.append("rows", rows[start:end])
            file.append("others", others[start:end])
        assert not (tmp_path / "file").exists()
    found = load_file(tmp_path / "file")
    assert torch.equal(found["rows"], rows)
    assert torch.equal(found["others"], others)


def test_tensors_are_read_in_place(tmp_path):
    tensors = of_all_dtypes()
    save_file(tensors, tmp_path / "file")
    found = mapped_tensors(tmp_path / "file")
    assert set(found) == set(tensors)
    for name, each in tensors.items():
        assert found[name].dtype == each.dtype
        assert torch.equal(found[name], each), name
        assert is_mapped(found[name]) == (each.numel() > 0)
        assert not is_mapped(each)
        will_need(found[name])
        release(found[name])
        assert torch.equal(found[name], each), name


def test_a_file_that_is_gone_is_read_on(tmp_path):
    save_file({"rows": torch.ones(3)}, tmp_path / "file")
    rows = mapped_tensors(tmp_path / "file")["rows"]
    (tmp_path / "file").unlink()
    assert rows.tolist() == [1.0, 1.0, 1.0]


def test_what_is_released_is_read_again_and_takes_no_memory(tmp_path):
    """Of 64 MiB that are looked at, what is released is not resident any more."""

    def resident():
        status = STATUS.read_text(encoding="utf-8")
        return int(re.search(r"Rss:\s+(\d+)", status)[1]) * 1024

    if not STATUS.exists():
        pytest.skip("needs Linux to be told what is resident")
    save_file({"rows": torch.ones(2**24)}, tmp_path / "file")
    rows = mapped_tensors(tmp_path / "file")["rows"]
    assert rows.sum() == 2**24
    before = resident()
    release(rows)
    assert before - resident() > 60 * 2**20
    assert rows[-1] == 1.0


@pytest.mark.parametrize("rows", [3, 5])
def test_too_few_and_too_many_numbers_are_refused(tmp_path, rows):
    with (
        pytest.raises(ValueError, match=r"^TensorWriter: .*, got .*(missing bytes|shape)="),
        TensorWriter(path=tmp_path / "file", outlines={"rows": torch.empty(4, 2)}) as file,
    ):
        file.append("rows", torch.ones(rows, 2))
    assert list(tmp_path.iterdir()) == []


def test_dtypes_that_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"got tensor='rows', dtype='torch.float64'"),
        TensorWriter(path=tmp_path / "file", outlines={"rows": torch.empty(4)}) as file,
    ):
        file.append("rows", torch.ones(4).double())
    with pytest.raises(ValueError, match=r"got tensor='rows', dtype='torch.complex64'"):
        TensorWriter(path=tmp_path / "file", outlines={"rows": torch.empty(4).cfloat()})


def test_an_error_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("before")
    with (
        pytest.raises(KeyError),
        TensorWriter(path=tmp_path / "file", outlines={"rows": torch.empty(4)}) as file,
    ):
        file.append("other", torch.ones(4))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(descriptor, data, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    text = r"^\[Errno 28\] TensorWriter: .* got path='.*file', system='No space left on device';"
    with (
        pytest.raises(OSError, match=text),
        TensorWriter(path=tmp_path / "file", outlines={"rows": torch.empty(4)}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none_are_refused(tmp_path):
    save_file({"rows": torch.ones(64)}, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    for damaged in (b"", b"text that is no file of tensors", whole[:-4], whole + b"more"):
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^mapped_tensors: file must be a safetensors file"):
            mapped_tensors(tmp_path / "file")


def test_a_dtype_that_no_memory_has_is_refused(tmp_path):
    save_file({"rows": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "file")
    with pytest.raises(ValueError, match=r"got tensor='rows', dtype='F8_E4M3'"):
        mapped_tensors(tmp_path / "file")
