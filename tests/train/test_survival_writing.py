"""Writing a checkpoint: beside the run, from a copy, whole or not at all."""

import resource
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memtx.train import Resume, RunCheckpoints
from memtx.train.run_files import checkpoints_in
from tests.train import tiny
from tests.train.test_checkpoints import at

SMALL = 40_000  # bytes: the values of a process fit, the tensors do not


@contextmanager
def room_for(size: int):
    """Let no file grow beyond a size, as on a full disk: the system refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def until_written() -> None:
    while any(thread.name == "run-checkpoint" for thread in threading.enumerate()):
        time.sleep(0.005)


class FullDisk:
    """A callback under which the disk is full for the saves after some steps."""

    def __init__(self, *, steps: set[int]) -> None:
        self.steps = steps
        self.full = None

    def after_step(self, run, record) -> None:
        until_written()
        if self.full is not None:
            self.full.__exit__(None, None, None)
            self.full = None
        if run.step in self.steps:
            self.full = room_for(SMALL)
            self.full.__enter__()

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


@pytest.fixture
def model():
    return tiny.adapter(model=tiny.base(seed=0))


def run(model, folder: Path, *, full: set[int], steps: int, start) -> None:
    made = tiny.trainer(model=model, steps=steps)
    saver = RunCheckpoints(folder=folder, every=1, keep=9)
    disk = FullDisk(steps=full)
    try:
        replace(made, checkpoints=[saver], callbacks=[disk], start=start or made.start).run()
    finally:
        if disk.full is not None:
            disk.full.__exit__(None, None, None)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_is_told_and_the_next_save_is_whole(model, tmp_path):
    with pytest.warns(UserWarning, match=r"be written whole, got folder='.*error='.*The run goes"):
        run(model, tmp_path, full={2}, steps=4, start=None)
    assert names_in(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]


def test_a_disk_that_stays_full_ends_the_run_and_what_was_saved_is_whole(model, tmp_path):
    with (
        pytest.raises(OSError, match=r"RunCheckpoints: a checkpoint must be written whole, got f"),
        pytest.warns(UserWarning, match="saves again now"),
    ):
        run(model, tmp_path, full={2, 3, 4}, steps=6, start=None)
    assert names_in(tmp_path) == ["step-00000001"]
    other = tiny.adapter(model=tiny.base(seed=0))
    run(other, tmp_path, full=set(), steps=6, start=Resume(folder=tmp_path))
    assert checkpoints_in(tmp_path)[-1].name == "step-00000006"


def test_a_last_save_that_fails_is_an_error(model, tmp_path):
    with pytest.raises(OSError, match="make room, or see what the error says; those saved before"):
        run(model, tmp_path, full={2}, steps=2, start=None)
    assert names_in(tmp_path) == ["step-00000001"]


def test_the_run_goes_on_while_a_copy_is_written(model, tmp_path):
    # Large enough that it takes a while.
    model.banks[0].tokens = torch.nn.Parameter(torch.zeros(200_000, tiny.WIDTH))
    saver = RunCheckpoints(folder=tmp_path, every=1, keep=9)
    made = at(model, step=1)
    saver.is_due(1)
    saver.save(made, {})
    # The step goes on, and what it does is not in the copy.
    assert names_in(tmp_path) != ["step-00000001"]
    with torch.no_grad():
        model.banks[0].tokens.add_(1.0)
    made.step = 2
    saver.save(made, {})
    assert [p.name for p in checkpoints_in(tmp_path)] == ["step-00000001"]  # one at a time
    saver.close()
    assert names_in(tmp_path) == ["step-00000001", "step-00000002"]
    for name, value in {"step-00000001": 0.0, "step-00000002": 1.0}.items():
        assert bank_in(tmp_path / name) == value


def bank_in(checkpoint: Path) -> float:
    import torch.distributed.checkpoint as dcp

    name = "model/model.banks.0.tokens"
    tensors = {name: torch.full((200_000, tiny.WIDTH), 7.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, checkpoint_id=checkpoint / "tensors", no_dist=True)
    assert tensors[name].unique().numel() == 1
    return float(tensors[name][0, 0])


def test_the_newest_are_kept(model, tmp_path):
    saver = RunCheckpoints(folder=tmp_path, every=1, keep=2)
    for step in (1, 2, 9, 10):
        saver.save(at(model, step=step), {})
    saver.close()
    assert names_in(tmp_path) == ["step-00000009", "step-00000010"]


def test_a_state_that_is_not_plain_is_refused(model, tmp_path):
    saver = RunCheckpoints(folder=tmp_path, every=1, keep=2)
    made = at(model, step=1)
    disk = FullDisk(steps=set())
    disk.state_dict = lambda: {"seen": [{1}]}
    made.callbacks = [disk]
    with pytest.raises(ValueError, match=r"not plain='run\.callbacks\[0\]\.state\.seen\[0\] \("):
        saver.save(made, {})
    saver.close()


@pytest.mark.parametrize(("every", "keep"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(tmp_path, every, keep):
    name = "every" if every == 0 else "keep"
    with pytest.raises(ValueError, match=f"RunCheckpoints: {name} must .* got {name}=0;"):
        RunCheckpoints(folder=tmp_path / "new", every=every, keep=keep)


def test_a_folder_that_cannot_be_made_is_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match=r"RunCheckpoints: the place to write .*file.*; choose anot"):
        RunCheckpoints(folder=tmp_path / "file", every=1, keep=1)
