"""A process that fails ends the others: by the watch alone, and on two nodes of torchrun."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from memtx.train.watch import Watch, _report
from tests.train.processes import ROOT

TIMES = {"every": 0.01, "silent": 0.2}


def watch_of(store, rank, end, times):
    return Watch(store=store, rank=rank, world_size=3, grace=0.0, end=end, **times)


def test_the_first_failure_is_told_to_all():
    store = dist.HashStore()
    watches = [watch_of(store, rank, print, TIMES) for rank in range(3)]
    assert [watch.look() for watch in watches] == [None] * 3
    watches[2].tell(ValueError("no room"))
    watches[0].tell(RuntimeError("connection closed"))
    assert {watch.look() for watch in watches} == {"process 2 failed first: ValueError: no room"}


def test_a_scripts_own_line_is_told_without_what_it_was_raised_from(tmp_path, monkeypatch):
    """torchrun shows what is written there at the end of its report."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    one = watch_of(dist.HashStore(), 0, print, TIMES)
    try:
        try:
            raise ValueError("rows=4, world_size=3")
        except ValueError as error:
            sys.exit(f"pretrain: {error}")
    except SystemExit as error:
        _report(error, watch=one)
    assert one.look() == "process 0 failed first: SystemExit: pretrain: rows=4, world_size=3"
    told = json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]
    assert "SystemExit: pretrain: rows=4, world_size=3" in told["py_callstack"]
    assert "During handling" not in told["py_callstack"]


def test_one_that_gives_no_sign_is_taken_for_dead_by_all():
    store = dist.HashStore()
    watches = [watch_of(store, rank, print, TIMES) for rank in range(3)]
    for _ in range(4):
        assert [watch.look() for watch in watches] == [None] * 3
        time.sleep(0.1)
    for _ in range(4):
        found = [watches[0].look(), watches[2].look()]
        time.sleep(0.1)
    assert found == ["process 1 gave no sign of life for 0 seconds"] * 2


def test_a_thread_ends_the_process_and_the_store_may_vanish():
    class Gone:
        def set(self, key, value):
            raise RuntimeError("Connection reset\nby a peer")

    ended = []
    watch = watch_of(Gone(), 0, ended.append, TIMES)
    watch.start()
    deadline = time.monotonic() + 5.0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == ["the store of the processes cannot be reached: Connection reset"]


def test_all_stop_together_and_none_is_taken_for_dead():
    store, ended, stopped = dist.HashStore(), [], []
    watches = [watch_of(store, rank, ended.append, TIMES) for rank in range(3)]

    def stop(rank):
        time.sleep(0.3 * rank)
        watches[rank].stop()
        stopped.append(time.monotonic())

    threads = [threading.Thread(target=stop, args=(rank,)) for rank in range(3)]
    started = time.monotonic()
    for part in [*watches, *threads]:
        part.start()
    for thread in threads:
        thread.join()
    assert ended == []
    assert min(stopped) - started >= 0.6


@pytest.mark.parametrize(("every", "silent"), [(0.0, 1.0), (1.0, 1.0)])
def test_times_that_leave_no_room_are_refused(every, silent):
    text = f"^Watch: silent must be longer .* got every={every}, silent={silent}; give a process"
    with pytest.raises(ValueError, match=text):
        watch_of(dist.HashStore(), 0, print, {"every": every, "silent": silent})


def run_on_two_nodes():
    """Each node has its own torchrun, which knows nothing of the other's processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    hidden = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **hidden, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *(f"--node_rank={node}", "--nproc_per_node=1", "--master_addr=127.0.0.1"),
                *(f"--master_port={port}", "-m", "tests.train.watch_worker"),
            ],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        return [(node.communicate(timeout=60)[1], node.returncode) for node in nodes]
    finally:
        for node in nodes:
            node.kill()


def test_a_failure_on_another_node_ends_a_process_that_would_wait():
    (first, code), (second, other) = run_on_two_nodes()
    assert code != 0
    assert other != 0
    why = "process 1 failed first: RuntimeError: the second process dies"
    assert f"memtx: this process ends, as {why}\n" in first
    # torchrun's report at the end names it too.
    assert "RuntimeError: the second process dies" in second.partition("Root Cause")[2]
