"""A run that goes on in another number of processes, or in processes of another kind."""

import signal
from dataclasses import replace

import pytest

from memtx.train.run_files import checkpoints_in
from tests.train import survival

LATER = {
    "alone": [("alone", 1), ("data-parallel", 2), ("sharded", 2)],
    "sharded": [("sharded", 2), ("alone", 1)],
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs that one of their processes was asked to end, by kind; nothing drops out."""
    found = {}
    for kind, processes in [("alone", 1), ("sharded", 2)]:
        folder = tmp_path_factory.mktemp(kind)
        job = survival.whole_run(folder, kind=kind, bf16=False, processes=processes)
        job = replace(job, dropout=0.0)
        codes, resumed = survival.resumed_after(job, blow=(4, processes - 1, signal.SIGTERM))
        # All of them end, and none as if the run were done.
        assert codes == [143] * processes
        found[kind] = job, resumed
    return found


@pytest.mark.parametrize("before", ["alone", "sharded"])
def test_weights_moments_and_position_are_exact_in_any_processes(stopped, before):
    job, resumed = stopped[before]
    (expected,) = survival.found(job)[:1]
    begun = []
    for kind, processes in LATER[before]:
        there = replace(resumed, kind=kind, processes=processes, name=f"{kind}-resumed")
        # Its own copy: each of them saves as it goes on.
        there = replace(there, folder=survival.copied(resumed.folder, name=f"copy-{kind}"))
        given = survival.found(there)
        begun += [each["begun"] for each in given]
        steps = len(given[0]["records"])
        losses = [each["loss"] for each in given[0]["records"]]
        wanted = [each["loss"] for each in expected["records"][-steps:]]
        assert losses == pytest.approx(wanted, rel=1e-5)
        step = int(checkpoints_in(resumed.folder)[-1].name.removeprefix("step-"))
        assert step == survival.STEPS - steps
        rows = [row for each in given for row in each["next"]["input_ids"]]
        assert rows[: len(expected["next"]["input_ids"])] == expected["next"]["input_ids"]
    assert begun[0]["shared"]["step"] == step
    assert all(each == begun[0] for each in begun)
