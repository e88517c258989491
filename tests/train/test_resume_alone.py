"""One process: ended at a random step, resumed, and equal to the run that was left alone."""

import signal

import pytest

from memtx.train.run_files import checkpoints_in
from tests.train import survival


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_run_that_was_killed_is_the_run_bit_for_bit(tmp_path, bf16):
    survival.require_survival(tmp_path, kind="alone", bf16=bf16, processes=1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_run_that_was_asked_to_stop_saves_first_and_is_the_run_bit_for_bit(
    tmp_path, number, code
):
    job = survival.whole_run(tmp_path, kind="alone", bf16=False, processes=1)
    # What is asked after step 4 ends the run after step 5, where nothing would have been saved.
    codes, resumed = survival.resumed_after(job, blow=(4, 0, number))
    # KeyboardInterrupt: multiprocessing exits with 1 where a script would with 130.
    assert codes == [code]
    saved = [path.name for path in checkpoints_in(resumed.folder)]
    step = survival.require_exact(survival.found(job), survival.found(resumed))
    assert saved[-1] == f"step-{step:08d}"
    assert step in (5, 6)
