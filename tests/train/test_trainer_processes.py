"""How two real processes end together: on a broken batch of one, and when nothing gets better."""

import json

import pytest

from memtx.train import digest
from tests.train import stopping_worker, tiny
from tests.train.processes import launch


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, of both jobs in one launch."""
    folder = tmp_path_factory.mktemp("stopping")
    done = launch("tests.train.stopping_worker", folder=folder, arguments=[], num_processes=2)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_both_processes_name_the_batch_that_broke_in_one(found):
    first, second = (each["poison"]["message"] for each in found)
    assert first == second
    # Step 3, second batch of a step, second process: the last of the first 12.
    sha1 = digest(tiny.fact_batches(batch_size=1)[11])
    assert f"got step={stopping_worker.STEP}, loss=nan," in first
    assert f"batches=['facts 11 (process 1, sha1 {sha1}, share nan)'];" in first


def test_both_processes_stop_at_one_step_with_one_model(found):
    first, second = (each["stop"] for each in found)
    assert first == second
    assert first["untouched"]
    assert first["frozen"]
    assert first["moved"] > 0
    # The means are 3, 2, 1.7, then 5.7 twice: the fifth step is the last.
    assert len(first["losses"]) == 5
    assert first["left_out"] == pytest.approx([1.0, 0.0, 0.0, 0.0, 0.0])
