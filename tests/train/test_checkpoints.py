"""Saved steps: which, how many, and folders that cannot be written."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from memtx.spec import load, load_adapter
from memtx.train import BestCheckpoint, Checkpoints, Run
from memtx.train.callbacks import Higher, Lower
from memtx.train.checkpoints import newest
from tests.train import sharded_models, tiny


@pytest.fixture
def model():
    made = tiny.adapter(model=tiny.base(seed=0))
    tiny.perturb(made)
    return made


def at(model, *, step: int) -> Run:
    """A run of a model that has taken so many steps."""
    trainer = tiny.trainer(model=model, steps=400)
    return Run(
        objective=trainer.objective,
        wrapped=trainer.objective,
        streams=trainer.streams,
        groups=trainer.groups,
        optimizer=trainer.optimizer.make(trainer.groups),
        scaler=trainer.precision.scaler(trainer.parallelism.device),
        parallelism=trainer.parallelism,
        callbacks=[],
        settings={},
        steps=400,
        step=step,
        stop=None,
    )


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
        checkpoints.save(at(model, step=step), {})
    assert names_in(folder) == ["step-00000010", "step-00000011"]
    assert newest(folder) == folder / "step-00000011"


def test_what_is_saved_is_the_memory_of_that_step(model, tmp_path):
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=2)
    checkpoints.save(at(model, step=1), {})
    wanted = tiny.memory_of(model)
    tiny.perturb(model)
    checkpoints.save(at(model, step=2), {})
    loaded = load_adapter(tmp_path / "step-00000001", base=tiny.base(seed=0))
    assert tiny.same(tiny.memory_of(loaded), wanted)
    assert not tiny.same(tiny.memory_of(model), wanted)


def test_the_files_of_others_stay(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "step-1").mkdir()
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    checkpoints.save(at(model, step=1), {})
    checkpoints.save(at(model, step=2), {})
    assert names_in(tmp_path) == ["notes.txt", "step-00000002", "step-1"]


def test_a_later_run_does_not_lose_its_checkpoints_to_an_earlier_one(model, tmp_path):
    Checkpoints(model=model, folder=tmp_path, every=1, keep=2).save(at(model, step=300), {})
    later = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    time.sleep(0.02)  # file times are not finer than a tick of the system
    later.save(at(model, step=100), {})
    assert names_in(tmp_path) == ["step-00000100"]
    assert newest(tmp_path) == tmp_path / "step-00000100"


def test_a_memory_that_is_not_finite_is_not_saved(model, tmp_path):
    checkpoints = Checkpoints(model=model, folder=tmp_path, every=1, keep=1)
    checkpoints.save(at(model, step=1), {})
    with torch.no_grad():
        model.banks[0].tokens[3, 2] = torch.inf
    with pytest.raises(FloatingPointError, match="got step=2, not finite=\\['banks.0.tokens'\\];"):
        checkpoints.save(at(model, step=2), {})
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


def looking(model, folder, *, better) -> BestCheckpoint:
    return BestCheckpoint(model=model, folder=folder, number="recall", better=better, every=5)


def look(best: BestCheckpoint, model, *, step: int, value: float) -> list[str]:
    assert best.is_due(step)
    best.save(at(model, step=step), {"recall": value})
    return names_in(best.folder)


@pytest.mark.parametrize(("better", "sign"), [(Higher(by=0.0), 1.0), (Lower(by=0.0), -1.0)])
def test_only_the_best_lies_there(model, tmp_path, better, sign):
    best = looking(model, tmp_path, better=better)
    assert not best.is_due(1)
    assert look(best, model, step=5, value=sign * 0.5) == ["best.json", "step-00000005"]
    wanted = tiny.memory_of(model)
    tiny.perturb(model)
    assert look(best, model, step=10, value=sign * 0.5) == ["best.json", "step-00000005"]
    loaded = load_adapter(tmp_path / "step-00000005", base=tiny.base(seed=0))
    assert tiny.same(tiny.memory_of(loaded), wanted)
    assert look(best, model, step=15, value=sign * 0.6) == ["best.json", "step-00000015"]
    note = json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))
    assert note == {"step": 15, "number": "recall", "value": sign * 0.6}


def test_a_gain_must_be_as_large_as_was_said(model, tmp_path):
    best = looking(model, tmp_path, better=Higher(by=0.2))
    look(best, model, step=5, value=0.5)
    assert look(best, model, step=10, value=0.6) == ["best.json", "step-00000005"]
    assert look(best, model, step=15, value=0.8) == ["best.json", "step-00000015"]


def test_a_resumed_run_goes_on_with_its_best_and_a_new_one_begins_anew(model, tmp_path):
    look(looking(model, tmp_path, better=Higher(by=0.0)), model, step=20, value=0.9)
    resumed = looking(model, tmp_path, better=Higher(by=0.0))
    resumed.is_due(21)
    assert look(resumed, model, step=25, value=0.8) == ["best.json", "step-00000020"]
    fresh = looking(model, tmp_path, better=Higher(by=0.0))
    fresh.is_due(1)
    assert look(fresh, model, step=5, value=0.1) == ["best.json", "step-00000005"]


def test_a_number_that_is_not_finite_is_never_the_best(model, tmp_path):
    best = looking(model, tmp_path, better=Higher(by=0.0))
    assert look(best, model, step=5, value=float("nan")) == []


def test_a_number_that_is_not_measured_is_refused_but_after_the_last_step(model, tmp_path):
    best = looking(model, tmp_path, better=Higher(by=0.0))
    with pytest.raises(ValueError, match=r"got number='recall', step=10, measured=\['loss'\];"):
        best.save(at(model, step=10), {"loss": 1.0})
    best.save(at(model, step=11), {"loss": 1.0})
    assert names_in(tmp_path) == []
    best.close()


def test_a_whole_model_is_saved_as_well(tmp_path):
    whole = sharded_models.stack(banks=[], reads=[[]])
    run = at(tiny.adapter(model=tiny.base(seed=0)), step=1)
    Checkpoints(model=whole, folder=tmp_path, every=1, keep=1).save(run, {})
    loaded = load(tmp_path / "step-00000001")
    assert all(map(torch.equal, loaded.parameters(), whole.parameters()))
