"""The benchmark of tensor memory runs on a CPU and writes records of the agreed form."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.tensor_memory import add_ratios, draw, record_of, run_case, table
from benchmarks.tensor_variants import Case, cumulative_sum, full_cases, growing_cases, tiny_cases
from memtx.ops.tensor_memory import features
from tests.rules.source import ROOT


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The script as it is called by hand, once: what it printed, and the records it wrote."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "benchmarks/tensor_memory.py", "--size", "tiny"]
    command += ["--output", str(folder)]
    environment = {**os.environ, "PYTHONPATH": "src:.", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        pytest.fail(ran.stderr, pytrace=False)
    return ran.stdout, json.loads((folder / "tensor_memory.json").read_text(encoding="utf-8"))


def test_every_variant_has_numbers(done):
    printed, content = done
    assert set(content) == {"machine", "versions", "date", "records"}
    (case,) = tiny_cases()
    timed = [record for record in content["records"] if record["case"] == case.name]
    assert [record["variant"] for record in timed] == case.variants
    for record in content["records"]:
        assert record["milliseconds"] > 0.0
        assert record["peak_gib"] is None  # a CPU does not count it
        assert record["variant"] in printed


def test_memtx_is_set_over_the_source(done):
    records = {record["variant"]: record for record in done[1]["records"] if "length" in record}
    memtx, source = records["memtx"], records["cumulative-sum"]
    assert memtx["ratio"] == pytest.approx(memtx["milliseconds"] / source["milliseconds"])
    assert "ratio" not in source
    assert "ratio" not in records["memtx-delta"]


def test_stream_and_decode(done):
    streams = [record for record in done[1]["records"] if record["case"].startswith("stream")]
    assert [record["variant"] for record in streams] == [
        "memtx-plain",
        "memtx-delta",
        "memtx-decaying",
    ]
    for record in streams:
        assert record["all_finite"]
        assert record["largest_memory"] <= 100.0
        assert record["largest_norm"] <= 1000.0
    (token,) = [record for record in done[1]["records"] if record["case"].startswith("decode")]
    assert token["state_bytes"] == 8 * 8 * (64 * 64 + 64) * 4


def test_failure_of_a_rival_is_a_record():
    case = Case(name="c", batch=1, length=4, heads=1, dim=2, variants=["memtx", "fla-linear"])
    records = run_case(case, torch.device("cpu"))
    add_ratios(records)
    assert records[1]["milliseconds"] is None
    assert "Error" in records[1]["error"]
    assert "ratio" not in records[0]
    assert "Error" in table(records)


def test_ratios_of_time_and_memory():
    case = full_cases()[0]
    records = [
        record_of(case, "memtx", [1.0, 3.0], 0.5, None),
        record_of(case, "cumulative-sum", [20.0], 10.0, None),
        record_of(case, "fla-linear", [4.0], 0.25, None),
    ]
    add_ratios(records)
    assert records[0]["ratios"] == {
        "cumulative-sum": {"time": 0.1, "memory": 0.05},
        "fla-linear": {"time": 0.5, "memory": 2.0},
    }
    assert records[0]["ratio"] == 0.1


def test_cumulative_sum_is_the_source():
    """It reads its own token too: the first one reads its own value."""
    query, key, value = torch.randn(3, 2, 5, 2, 4)
    read = cumulative_sum(tiny_cases()[0])(query, key, value)
    torch.testing.assert_close(read[:, 0], value[:, 0], rtol=1e-4, atol=1e-4)
    weights = torch.einsum("bthd,bshd->bhts", features(query), features(key)).tril()
    wanted = torch.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdim=True), value)
    torch.testing.assert_close(read, wanted, rtol=1e-4, atol=1e-4)


def test_the_cost_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    records = [
        record_of(case, name, [float(case.length)], None, None)
        for case in growing_cases()
        for name in case.variants
    ]
    (tmp_path / "results.json").write_text(json.dumps({"records": records}), encoding="utf-8")
    draw(results=tmp_path / "results.json", path=tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
