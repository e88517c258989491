"""The benchmark of scaling, on a stack of a million parameters, under torchrun over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.scaling_runs import RandomTokens
from tests.rules.source import ROOT


def test_two_processes_see_in_a_step_what_one_sees_in_two_parts():
    def stream(parts):
        return RandomTokens(vocab_size=50, rows=2, parts=parts, length=3)

    one, first, second = stream(2), stream(1), stream(1)
    for _ in range(3):
        whole = one.next_batch(rank=0, world_size=1)["input_ids"].tolist()
        halves = [first.next_batch(rank=0, world_size=2), second.next_batch(rank=1, world_size=2)]
        assert whole == [row for half in halves for row in half["input_ids"].tolist()]


def run(*, processes: int, arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """The records that the script writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "benchmarks/scaling.py", "--cpu", "--rows", "1"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    hidden = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, "--output", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))["records"]


def test_two_processes_resume_to_the_bit_in_every_way_when_asked_for_that_alone(tmp_path):
    ways = ["ddp", "fsdp2", "fsdp2-bf16"]
    records = run(processes=2, arguments=["--round-trip", *ways], folder=tmp_path)
    assert (tmp_path / "scaling_round_trip.json").is_file()
    assert [(r["case"], r["variant"]) for r in records] == [
        ("checkpoint-round-trip", way) for way in ways
    ]
    for record in records:
        assert record["processes"] == 2
        assert record["compared"] > 5_000_000
        assert record["steps_after"] >= 2
        assert record["different"] == record["different_at_the_end"] == 0
        assert record["loss_difference"] == 0.0


def test_the_script_writes_its_records_and_its_checks_hold(tmp_path):
    records = run(processes=1, arguments=[], folder=tmp_path)
    timed = {r["variant"]: r for r in records if "tokens_per_second" in r}
    assert list(timed) == ["single-process", "ddp", "fsdp2", "fsdp2-kept", "fsdp2-bf16"]
    for record in timed.values():
        wanted = timed["single-process"]["milliseconds"] / record["milliseconds"]
        assert abs(record["efficiency"] - wanted) < 1e-9
    errors = [r["relative_error"] for r in records if r["case"] == "shared-bank-gradient"]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    trips = [r for r in records if r["case"] == "checkpoint-round-trip"]
    assert [(r["variant"], r["different"]) for r in trips] == [("ddp", 0), ("fsdp2", 0)]
    assert all(r["compared"] > 5_000_000 for r in trips)
