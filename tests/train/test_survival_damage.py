"""Checkpoints that are damaged, half written or of another run: never resumed in silence."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from memtx import RollingRouting
from memtx.train import InitFrom, NextTokenLoss, Objective, Resume, ResumeIfAny, RunCheckpoints
from memtx.train.run_files import MANIFEST, checkpoints_in, files_in
from tests.train import tiny

STEPS, NEWEST, BEFORE = 4, "step-00000004", "step-00000002"


class HaltError(Exception):
    """Ends a run where it would begin."""


class Begin:
    """A start that begins as another and goes no further."""

    def __init__(self, *, start) -> None:
        self.start = start
        self.step = None

    def begin(self, run) -> None:
        self.start.begin(run)
        self.step = run.step
        raise HaltError


@pytest.fixture(scope="module")
def model():
    return tiny.adapter(model=tiny.base(seed=0))


@pytest.fixture(scope="module")
def made(model):
    return tiny.trainer(model=model, steps=STEPS)


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    """The folder of a run that saved after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    replace(made, checkpoints=[RunCheckpoints(folder=folder, every=2, keep=2)]).run()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def begun(made, start) -> int:
    """The step at which a run would go on."""
    begin = Begin(start=start)
    with pytest.raises(HaltError):
        replace(made, start=begin).run()
    return begin.step


def cut(path, *, share: float) -> None:
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))


def every_file(saved) -> list[str]:
    return [MANIFEST, *files_in(saved / NEWEST)]


def test_checkpoint_is_tensors_values_each_process_and_a_manifest_of_them(saved):
    assert [path.name for path in checkpoints_in(saved)] == [BEFORE, NEWEST]
    names = files_in(saved / NEWEST)
    assert names == ["rank-00000.json", "run.json", "tensors/.metadata", "tensors/__0_0.distcp"]
    manifest = json.loads((saved / NEWEST / MANIFEST).read_text())
    assert sorted(manifest["files"]) == names
    assert (manifest["step"], manifest["processes"]) == (4, 1)
    assert sorted(path.name for path in saved.iterdir()) == [BEFORE, NEWEST]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_file_that_was_cut_off_is_found_and_the_one_before_is_taken(folder, saved, made, share):
    for name in every_file(saved):
        cut(folder / NEWEST / name, share=share)
        with pytest.warns(UserWarning, match=rf"got {NEWEST}=.{re.escape(name)}.*from {BEFORE}"):
            assert begun(made, Resume(folder=folder)) == 2
        # It is out of the way, and was not thrown away.
        assert [path.name for path in checkpoints_in(folder)] == [BEFORE]
        aside = [path for path in folder.iterdir() if "damaged" in path.name]
        assert len(aside) == 1
        shutil.rmtree(aside[0])
        shutil.copytree(saved / NEWEST, folder / NEWEST)


def test_file_with_one_changed_bit_or_none_at_all_is_found(folder, saved, made):
    for name in files_in(saved / NEWEST):
        path = folder / NEWEST / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=re.escape(f"{name} has another sha256")):
            assert begun(made, Resume(folder=folder)) == 2
        shutil.copytree(saved / NEWEST, folder / NEWEST)
        path.unlink()
        with pytest.warns(UserWarning, match=re.escape(f"{name} is missing")):
            assert begun(made, Resume(folder=folder)) == 2
        shutil.copytree(saved / NEWEST, folder / NEWEST)


def test_manifest_of_another_format_is_not_believed(folder, made):
    path = folder / NEWEST / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.warns(UserWarning, match=r"manifest\.json is of another format"):
        assert begun(made, Resume(folder=folder)) == 2


def test_run_that_is_done_is_not_done_again(folder, made):
    saver = RunCheckpoints(folder=folder, every=2, keep=2)
    assert replace(made, start=Resume(folder=folder), checkpoints=[saver]).run() == []


@pytest.mark.parametrize("start", [Resume, ResumeIfAny])
def test_where_all_are_damaged_nothing_is_resumed_and_nothing_begun_anew(folder, made, start):
    for name in (BEFORE, NEWEST):
        cut(folder / name / "run.json", share=0.5)
    with pytest.raises(ValueError, match=r"must be whole, got step-00000004='run.json has \d+ b"):
        replace(made, start=start(folder=folder)).run()
    assert [path.name for path in checkpoints_in(folder)] == [BEFORE, NEWEST]


def test_where_there_is_none_resume_refuses_and_resume_if_any_begins(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold a checkpoint of a run, got folder='"):
        replace(made, start=Resume(folder=tmp_path)).run()
    assert begun(made, ResumeIfAny(folder=tmp_path / "not there")) == 0


def test_what_a_killed_run_left_is_no_checkpoint_and_is_removed_at_the_next_save(folder, made):
    left = folder / ".step-00000006.writing"
    shutil.copytree(folder / NEWEST, left)
    assert begun(made, Resume(folder=folder)) == 4
    longer = replace(tiny.trainer(model=made.objective.model, steps=6), start=made.start)
    saver = RunCheckpoints(folder=folder, every=2, keep=2)
    with pytest.warns(UserWarning, match=r"settings.steps: 4 then, 6 now"):
        replace(longer, start=Resume(folder=folder), checkpoints=[saver]).run()
    assert sorted(path.name for path in folder.iterdir()) == [NEWEST, "step-00000006"]


def test_fresh_run_does_not_mix_with_what_another_one_saved(folder, made):
    saver = RunCheckpoints(folder=folder, every=2, keep=2)
    with pytest.raises(ValueError, match=r"got folder='.*', newest=\['step-00000004'\], next st"):
        replace(made, checkpoints=[saver]).run()
    assert [path.name for path in checkpoints_in(folder)] == [BEFORE, NEWEST]


def test_run_of_another_model_is_refused_with_what_differs(folder, made):
    strategy = RollingRouting(window=2)
    other = tiny.routed_adapter(model=tiny.base(seed=0), strategy=strategy)
    with pytest.raises(ValueError, match=r"one that was saved, got .*differences=\['model\."):
        replace(tiny.trainer(model=other, steps=STEPS), start=Resume(folder=folder)).run()


def test_run_with_another_base_is_refused(folder):
    other = tiny.adapter(model=tiny.base(seed=1))
    for start in (Resume(folder=folder), InitFrom(path=folder)):
        with pytest.raises(ValueError, match=r"'frozen\.base\.model\.embed_tokens\.weight: oth"):
            replace(tiny.trainer(model=other, steps=STEPS), start=start).run()


def test_run_with_other_groups_or_terms_is_refused(folder, made, model):
    renamed = replace(made, groups=[replace(made.groups[0], name="all")])
    with pytest.raises(ValueError, match=r"\"groups\.all: 'nothing' then, \['model\.bank"):
        replace(renamed, start=Resume(folder=folder)).run()
    term = NextTokenLoss(name="facts", stream="facts", weight=1.0, chunk=7)
    other = replace(made, objective=Objective(model=model, terms=[term]))
    with pytest.raises(ValueError, match=r"terms\.facts\.chunk: 1024 then, 7 now"):
        replace(other, start=Resume(folder=folder)).run()


def test_other_rates_are_told_and_taken(folder, made):
    faster = replace(made, groups=[replace(made.groups[0], learning_rate=0.5)])
    with pytest.warns(UserWarning, match=r"settings\.learning_rate\.memory: 0\.01 then, 0\.5 now"):
        assert begun(faster, Resume(folder=folder)) == 4


@pytest.mark.parametrize("name", ["", NEWEST])
def test_init_from_takes_the_weights_alone(folder, made, model, name):
    assert begun(made, Resume(folder=folder)) == 4
    saved = tiny.memory_of(model)
    other = tiny.adapter(model=tiny.base(seed=0))
    assert not tiny.same(tiny.memory_of(other), saved)
    # Neither rate, nor length, nor the position of the data matters.
    assert begun(tiny.trainer(model=other, steps=9), InitFrom(path=folder / name)) == 0
    assert tiny.same(tiny.memory_of(other), saved)


def test_init_from_refuses_other_tensors(folder):
    strategy = RollingRouting(window=2)
    other = tiny.routed_adapter(model=tiny.base(seed=0), strategy=strategy)
    with pytest.raises(ValueError, match=r"InitFrom: .*differences=\[.tensors\.model\."):
        replace(tiny.trainer(model=other, steps=STEPS), start=InitFrom(path=folder)).run()


def test_init_from_refuses_what_is_no_checkpoint(made, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be a checkpoint of a run.*, got path="):
        replace(made, start=InitFrom(path=tmp_path)).run()
