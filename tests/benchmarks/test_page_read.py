"""The benchmark of a decoded token's read runs on a CPU, and both ways read the same."""

import json
import sys

import pytest
import torch

from benchmarks import page_read as benchmark


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """Compiling takes a minute here; FlexAttention then warns that it goes over everything."""
    monkeypatch.setattr(benchmark, "compiled", lambda read: read)
    monkeypatch.setattr(benchmark.pages, "_compiled", lambda: benchmark.pages.attend)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_script_writes_both_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["page_read", "--tiny", "--cpu", "--output", str(tmp_path)])
    assert benchmark.main() == 0
    content = json.loads((tmp_path / "page_read.json").read_text(encoding="utf-8"))
    first, second = content["records"]
    assert [first["variant"], second["variant"]] == [benchmark.PAGES, benchmark.GATHERED]
    assert first["ratio"] == first["milliseconds"] / second["milliseconds"]
    assert benchmark.pages.FASTER_ON


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_both_ways_read_the_same():
    (case,) = benchmark.cases(on_gpu=False, tiny=True)
    given = benchmark.drawn(case, torch.device("cpu"))
    with torch.no_grad():
        wanted = benchmark.gathered(*given)
        torch.testing.assert_close(benchmark.pages.page_read(*given), wanted)


def test_a_failure_is_a_record():
    def fails(query, key, value, choice, weight):
        raise MemoryError("too large")

    (case,) = benchmark.cases(on_gpu=False, tiny=True)
    record = benchmark.measured(fails, benchmark.drawn(case, torch.device("cpu")), timed=1)
    assert record["error"] == "MemoryError: too large"
