"""The benchmark of routed reads runs on a CPU and writes records of the agreed form."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import routed_read as benchmark
from benchmarks.read_cases import AXES, sweep
from benchmarks.read_rivals import by_sequence, by_token
from benchmarks.routed_read import arguments_of, tiny_cases, variants
from memtx.ops.routed_read import joint_read
from tests.rules.source import ROOT


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What the script writes as it is called by hand."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "benchmarks/routed_read.py", "--tiny", "--output", str(folder)]
    environment = {**os.environ, "PYTHONPATH": "src:.", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        pytest.fail(ran.stderr, pytrace=False)
    content = json.loads((folder / "routed_read.json").read_text(encoding="utf-8"))
    assert set(content) == {"machine", "versions", "date", "records"}
    return content["records"]


def test_memtx_has_numbers_in_every_case(records):
    ours = [record for record in records if record["variant"] == "memtx"]
    assert [record["case"] for record in ours] == [
        f"tiny by {kind} {mixing} float32"
        for kind in ("sequence", "token")
        for mixing in ("joint", "independent")
    ]
    for record in ours:
        assert record["milliseconds"] > 0.0
        assert record["peak_gib"] is None  # a CPU does not count it
        assert record["ratio"] == 1.0


def test_rivals_are_set_beside_it_or_say_why_not(records):
    for record in records:
        if "error" in record:
            assert record["milliseconds"] is record["ratio"] is None
        else:
            assert record["ratio"] > 0.0
    failed = {record["variant"] for record in records if "error" in record}
    assert failed <= {"varlen_attn on sorted pairs"}  # torch has it for GPUs alone


@pytest.mark.parametrize("case", tiny_cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("mixing", ["joint", "independent"])
def test_rivals_that_leave_nothing_out_read_the_same(case, mixing):
    arguments = arguments_of(case, device=torch.device("cpu"))
    each = variants(case, mixing, on_gpu=False)
    rivals = by_token(mixing) if case.by_token else by_sequence(mixing)
    same = [name for name in rivals if "without" not in name and "varlen" not in name]
    for name in same:
        torch.testing.assert_close(each[name](arguments), each["memtx"](arguments))


def test_what_leaves_the_weights_out_reads_the_same_where_they_are_equal():
    arguments = arguments_of(tiny_cases()[0], device=torch.device("cpu"))
    with torch.no_grad():
        arguments.log_weight.fill_(0.0)
    a = arguments
    wanted = joint_read(a.query, a.key, a.value, a.choice, a.log_weight, a.segments, 0.0)
    given = by_sequence("joint")["gather + SDPA without weights"](arguments)
    torch.testing.assert_close(given, wanted)


def test_a_sweep_grows_one_size_at_a_time(monkeypatch, tmp_path):
    given = ["routed_read", "--tiny", "--cpu", "--sweep", "--output", str(tmp_path)]
    limit = torch._dynamo.config.recompile_limit
    for arguments in (given, [*given, "--axes", "bank"]):
        monkeypatch.setattr(sys, "argv", arguments)
        assert benchmark.main() == 0
    torch._dynamo.config.recompile_limit = limit
    content = json.loads((tmp_path / "routed_read_sweep.json").read_text(encoding="utf-8"))
    ours = [(r["axis"], r["at"]) for r in content["records"] if r["variant"] == "memtx"]
    assert ours == [(point.axis, point.at) for point in sweep("tiny")]
    assert all(record["milliseconds"] > 0.0 for record in content["records"])
    # Reading of all knows no chapters: it is one point where only their number grows.
    dense = [r["axis"] for r in content["records"] if r["variant"] == benchmark.DENSE]
    assert dense == ["top-k", "length", "length", "bank", "bank"]


@pytest.mark.parametrize("where", ["gpu", "cpu", "tiny"])
def test_points_of_an_axis_differ_in_its_size_alone(where):
    for axis, size in zip(AXES, ("chosen", "length", "chapters"), strict=True):
        cases = [vars(point.case) for point in sweep(where) if point.axis == axis]
        differ = {name for name in cases[0] if len({str(case[name]) for case in cases}) > 1}
        assert differ == {size}


def test_a_point_that_does_not_fit_is_a_record(monkeypatch):
    def fails(case, *, device):
        raise MemoryError("too large")

    monkeypatch.setattr(benchmark, "arguments_of", fails)
    (record,) = benchmark.records_at(next(sweep("tiny")), device=torch.device("cpu"))
    assert (record["error"], record["at"]) == ("MemoryError: too large", 1)
    assert "too large" in benchmark.table([record])
