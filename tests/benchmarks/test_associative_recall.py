"""The benchmark of associative recall runs on a CPU and writes records that can be drawn."""

import json
import sys

import pytest
import torch

from benchmarks import associative_recall as benchmark
from tests.rules.source import ROOT

FACTORY = "tests.examples.quick_recall:models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        arguments = ["--factory", FACTORY, "--output", str(folder), "--steps", "4"]
        patch.setattr(sys, "argv", ["associative_recall", *arguments])
        benchmark.main()
    return folder


def test_records_hold_each_model_s_end_and_curve(folder):
    content = json.loads((folder / "associative_recall.json").read_text(encoding="utf-8"))
    assert set(content) == {"machine", "versions", "date", "records"}
    records = content["records"]
    assert [record["method"] for record in records] == ["plain, then delta", "softmax behind"]
    for record in records:
        assert record["steps"] == [2, 4]
        assert set(record["final"]) == set(record["accuracy"]) == {"1", "2"}
        assert all(0.0 <= share <= 1.0 for share in record["final"].values())
        assert all(record["accuracy"][pairs][-1] == end for pairs, end in record["final"].items())


def test_the_plot_is_drawn_from_the_records(folder, monkeypatch):
    path = folder / "recall.png"
    arguments = ["--output", str(folder), "--draw", str(path)]
    monkeypatch.setattr(sys, "argv", ["associative_recall", *arguments])
    benchmark.main()
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_of_several_runs_each_model_keeps_its_best(folder, tmp_path, monkeypatch):
    content = json.loads((folder / "associative_recall.json").read_text(encoding="utf-8"))
    better = json.loads(json.dumps(content["records"][1]))
    better["learning_rate"] = 0.25
    better["accuracy"]["2"] = [0.0, 1.0]
    (tmp_path / "other").mkdir()
    text = json.dumps({**content, "records": [better]})
    (tmp_path / "other" / "associative_recall.json").write_text(text, encoding="utf-8")
    runs = [str(folder), str(tmp_path / "other")]
    arguments = ["--collect", *runs, "--output", str(tmp_path / "all")]
    monkeypatch.setattr(sys, "argv", ["associative_recall", *arguments])
    benchmark.main()
    text = (tmp_path / "all" / "associative_recall.json").read_text(encoding="utf-8")
    first, second = json.loads(text)["records"]
    assert first["method"] == "plain, then delta"
    assert first["tried"] == {"0.01": content["records"][0]["accuracy"]["2"][-1]}
    assert second["learning_rate"] == 0.25
    assert second["final"]["2"] == 1.0
    assert second["tried"] == {"0.005": content["records"][1]["accuracy"]["2"][-1], "0.25": 1.0}


def test_a_rate_can_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--factory", FACTORY, "--models", "softmax behind", "--rate", "0.02"]
    arguments += ["--steps", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["associative_recall", *arguments])
    benchmark.main()
    text = (tmp_path / "associative_recall.json").read_text(encoding="utf-8")
    (record,) = json.loads(text)["records"]
    assert (record["method"], record["learning_rate"]) == ("softmax behind", 0.02)


ROWS = {
    "plain, then delta": "token before, then plain rule; delta rule from half-way on",
    "plain": "token before, then plain rule",
    "delta": "token before, then delta rule",
    "decaying": "token before, then decaying (0.995)",
    "softmax behind": "token before, then softmax attention",
    "delta alone": "two layers of the delta rule",
    "softmax": "two layers of softmax attention",
}


def test_the_table_of_the_documentation_is_of_the_committed_records():
    path = ROOT / "benchmarks" / "results" / "associative_recall.json"
    page = (ROOT / "docs" / "tensor-memory.md").read_text(encoding="utf-8")
    outcomes = {outcome.method: outcome for outcome in benchmark.outcomes_of(path)}
    assert set(outcomes) == set(ROWS)
    for method, row in ROWS.items():
        shares = [f"{found[-1]:.3f}" for found in outcomes[method].accuracy.values()]
        assert "| " + " | ".join([row, *shares]) + " |" in page
        assert f"{outcomes[method].steps[-1]:,} steps of 16,384 tokens" in page
