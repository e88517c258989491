"""The benchmark of banks out of core runs on a CPU and writes records of the agreed form."""

import json
import os
import subprocess
import sys

import pytest

from tests.rules.source import ROOT


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What the script writes as it is called by hand."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "benchmarks/out_of_core.py", "--cpu", "--size", "small"]
    environment = {**os.environ, "PYTHONPATH": "src:.", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, "--output", str(folder), "--folder", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        pytest.fail(ran.stderr, pytrace=False)
    assert [path.name for path in folder.iterdir()] == ["out_of_core_cpu.json"]
    content = json.loads((folder / "out_of_core_cpu.json").read_text(encoding="utf-8"))
    assert set(content) == {"machine", "versions", "date", "records"}
    return content["records"]


def test_records_have_the_agreed_form(records):
    for record in records:
        assert {"case", "variant", "milliseconds", "peak_gib", "ratio"} <= set(record)
        assert record["milliseconds"] > 0.0
    assert len({(record["case"], record["variant"]) for record in records}) == len(records) == 8


def test_a_bank_gives_the_same_wherever_it_lies(records):
    compared = [record for record in records if record["ratio"] is not None]
    assert len(compared) == 5
    assert all(record["same_tokens"] for record in compared)
    by_name = {record["variant"]: record for record in compared}
    host, waiting = by_name["memtx, host"], by_name["memtx, host, nothing fetched ahead"]
    assert waiting["fetched_ahead"] == 0 < host["fetched_ahead"]
    assert host["misses"] < waiting["misses"]
    assert host["places_gib"] < host["bank_gib"] / 10


def test_larger_banks_take_little(records):
    larger = [record for record in records if record["ratio"] is None]
    assert len(larger) == 3
    for record in larger:
        assert record["places_gib"] < record["bank_gib"] / 10
        assert record["misses"] > 0
