"""The benchmark of a training step runs on a CPU and writes records of the agreed form."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.adapter_step import Run, add_ratios, record_of, table, tiny_setting
from tests.rules.source import ROOT

VARIANTS = [
    "memtx",
    "memtx-upper-layers",
    "memtx-locality",
    "memtx-compiled",
    "memtx-upper-layers-compiled",
    "memtx-routed",
    "memtx-routed-compiled",
    "memtx-routed-2048-compiled",
    "peft-lora-r16",
    "peft-lora-r16-compiled",
    "peft-lora-r16-chunked-loss",
    "peft-prefix-8",
    "frozen-base-forward",
]
MEASURED = ("milliseconds", "milliseconds_min", "milliseconds_max", "tokens_per_second")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The script as it is called by hand, once: what it printed, and the folder it wrote."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "benchmarks/adapter_step.py", "--tiny", "--output", str(folder)]
    # What `torch.compile` makes is tested elsewhere, and takes a compiler for C++ on a CPU.
    quick = {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    environment = {**os.environ, "PYTHONPATH": "src:.", **quick}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        pytest.fail(ran.stderr, pytrace=False)
    return ran.stdout, folder / "adapter_step.json"


@pytest.fixture(scope="module")
def content(done):
    return json.loads(done[1].read_text(encoding="utf-8"))


def test_file_says_where_and_when(content):
    assert set(content) == {"machine", "versions", "date", "records"}
    assert {"python", "torch", "transformers", "peft"} <= set(content["versions"])


def test_every_variant_has_numbers(content):
    assert [record["variant"] for record in content["records"]] == VARIANTS
    for record in content["records"]:
        assert record["case"] == "qwen2-tiny-shape batch 2 x 16 bf16"
        assert all(record[name] > 0.0 for name in MEASURED), record
        assert record["milliseconds_min"] <= record["milliseconds"] <= record["milliseconds_max"]
        assert record["peak_gib"] is None  # a CPU does not count it
        assert (record["trainable_parameters"] == 0) == (record["variant"] == "frozen-base-forward")


def test_memtx_is_set_over_every_rival(content):
    by_name = {record["variant"]: record for record in content["records"]}
    for name, record in by_name.items():
        assert ("ratio" in record) == name.startswith("memtx")
    memtx = by_name["memtx"]
    rivals = [name for name in VARIANTS if not name.startswith("memtx")]
    assert list(memtx["ratios"]) == rivals
    assert list(by_name["memtx-routed"]["ratios"]) == [*rivals, "memtx", "memtx-compiled"]
    lora = by_name["peft-lora-r16"]["milliseconds"]
    assert memtx["ratio"] == pytest.approx(memtx["milliseconds"] / lora)


def test_table_and_path_are_printed_last(done):
    printed, path = done
    lines = printed.splitlines()
    assert lines[-1] == str(path)
    assert [line.split()[0] for line in lines[2:-1]] == VARIANTS


def test_failure_of_a_rival_is_a_record():
    setting = tiny_setting(torch.device("cpu"))
    good = Run(milliseconds=[2.0, 4.0], peak_gib=1.0, trainable_parameters=3, error=None)
    bad = Run(milliseconds=[], peak_gib=None, trainable_parameters=None, error="ValueError: no")
    runs = {"memtx": [good, good], "peft-lora-r16": [bad, bad], "other": [good, good]}
    records = [record_of(setting=setting, name=name, runs=runs[name]) for name in runs]
    add_ratios(records)
    memtx, lora, _ = records
    assert lora["error"] == "ValueError: no"
    assert lora["milliseconds"] is None
    assert memtx["ratio"] is None
    assert memtx["ratios"]["other"] == {"time": 1.0, "memory": 1.0}
    assert "ValueError: no" in table(records)
