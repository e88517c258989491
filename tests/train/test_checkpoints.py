"""Saved steps: which, how many, and folders that cannot be written."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from memtx.spec import load_adapter
from memtx.train import Checkpoints
from memtx.train.checkpoints import newest
from tests.train import tiny


@pytest.fixture
def model():
    made = tiny.adapter(model=tiny.base(seed=0))
    tiny.perturb(made)
    return made


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_so_many_steps_is_due(model, tmp_path):
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=3, keep=1)
    assert [step for step in range(1, 10) if checkpoints.is_due(step)] == [3, 6, 9]


def test_the_newest_are_kept_and_nothing_else_lies_there(model, tmp_path):
    folder = tmp_path / "a" / "b"
    checkpoints = Checkpoints(model=model, folder=str(folder), every=1, keep=2)
    assert newest(folder) is None
    for step in (8, 9, 10, 11):
        checkpoints.save(step)
    assert names_in(folder) == ["step-00000010", "step-00000011"]
    assert newest(folder) == folder / "step-00000011"


def test_what_is_saved_is_the_memory_of_that_step(model, tmp_path):
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=2)
    checkpoints.save(1)
    wanted = tiny.memory_of(model)
    tiny.perturb(model)
    checkpoints.save(2)
    loaded = load_adapter(tmp_path / "step-00000001", base=tiny.base(seed=0))
    assert tiny.same(tiny.memory_of(loaded), wanted)
    assert not tiny.same(tiny.memory_of(model), wanted)


def test_the_files_of_others_stay(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "step-1").mkdir()
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    checkpoints.save(1)
    checkpoints.save(2)
    assert names_in(tmp_path) == ["notes.txt", "step-00000002", "step-1"]


def test_a_later_run_does_not_lose_its_checkpoints_to_an_earlier_one(model, tmp_path):
    Checkpoints(model=model, folder=tmp_path, every=1, keep=2).save(300)
    later = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    time.sleep(0.02)  # file times are not finer than a tick of the system
    later.save(100)
    assert names_in(tmp_path) == ["step-00000100"]
    assert newest(tmp_path) == tmp_path / "step-00000100"


def test_a_memory_that_is_not_finite_is_not_saved(model, tmp_path):
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    checkpoints.save(1)
    with torch.no_grad():
        model.banks[0].tokens[3, 2] = torch.inf
    with pytest.raises(FloatingPointError, match="got step=2, not finite=\\['banks.0.tokens'\\];"):
        checkpoints.save(2)
    assert names_in(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_folder_that_cannot_be_made_is_found_out_at_once(model, tmp_path, below):
    # Below a file no folder can be made, not even by root.
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    folder = tmp_path / "file" / below if below else tmp_path / "file"
    with pytest.raises(OSError, match=r"Checkpoints: the place to write .*file.*; choose another"):
        Checkpoints(model=model, folder=folder, every=1, keep=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_found_out_at_once(model, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError):
        Checkpoints(model=model, folder=tmp_path, every=1, keep=1)


def test_processes_that_start_together_do_not_trip_over_each_other(model, tmp_path):
    def start(number: int) -> Checkpoints:
        return Checkpoints(model=model, folder=tmp_path, every=1, keep=1)

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert len(list(pool.map(start, range(400)))) == 400
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("every", "keep"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(model, tmp_path, every, keep):
    name = "every" if every == 0 else "keep"
    with pytest.raises(ValueError, match=f"Checkpoints: {name} must .* got {name}=0;"):
        Checkpoints(model=model, folder=tmp_path / "new", every=every, keep=keep)
    assert not (tmp_path / "new").exists()
