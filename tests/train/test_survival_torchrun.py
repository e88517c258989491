"""Processes that `torchrun` started, and that it is asked to end."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from memtx.train.run_files import checkpoints_in
from tests.train import survival
from tests.train.processes import ROOT


def test_torchrun_that_is_asked_to_end_lets_the_run_save_first(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.train.survival", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folder, log = tmp_path / "ended", (tmp_path / "log").open("w", encoding="utf-8")
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log) as process:
        end = time.monotonic() + 60.0
        while not checkpoints_in(folder) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    log.close()
    text = (tmp_path / "log").read_text(encoding="utf-8")
    # Not 0: what waits for the job must not take it for done.
    assert code != 0, text
    job = survival.whole_run(tmp_path, kind="data-parallel", bf16=False, processes=2)
    resumed = replace(job, folder=folder, start="resume", name="resumed")
    saved = int(checkpoints_in(folder)[-1].name.removeprefix("step-"))
    step = survival.require_exact(survival.found(job), survival.found(resumed))
    assert step == saved, text
    assert step > survival.EVERY
