"""Runs are shared out, taken up, and kept when a process is killed; texts are cut without loss."""

import argparse
import json
import sys

import pytest

from benchmarks.evidence import texts, together
from benchmarks.evidence.runs import (
    Job,
    Share,
    broken,
    claim,
    merge,
    pace_of,
    records_in,
    share,
    until_all,
    work,
)

ALL = Share(index=0, count=1)


def jobs(count):
    return [Job(name=f"run {n}", cost=1.0, values=n) for n in range(count)]


def test_what_is_done_is_not_done_again(tmp_path):
    called = []

    def do(number):
        called.append(number)
        return {"value": number}

    given = {"do": do, "folder": tmp_path, "name": "some", "pace": pace_of(None)}
    assert work(jobs(2), part=Share(index=1, count=2), **given) == 0
    assert called == [0, 1]
    assert work(jobs(3), part=ALL, **given) == 0
    assert called == [0, 1, 2]
    assert sorted(r["value"] for r in records_in(tmp_path, name="some")) == [0, 1, 2]


def test_a_line_that_was_cut_off_loses_one_run(tmp_path):
    given = {"do": lambda n: {"value": n}, "folder": tmp_path, "name": "some"}
    work(jobs(2), part=ALL, pace=pace_of(None), **given)
    path = tmp_path / "some-0-of-1.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-20], encoding="utf-8")
    assert [r["value"] for r in records_in(tmp_path, name="some")] == [0]
    work(jobs(2), part=ALL, pace=pace_of(None), **given)
    assert sorted(r["value"] for r in records_in(tmp_path, name="some")) == [0, 1]


def test_no_run_is_begun_that_would_end_after_the_budget(tmp_path):
    given = {"do": lambda n: {"value": n}, "folder": tmp_path, "name": "some", "part": ALL}
    assert work(jobs(4), pace=pace_of(-1.0), **given) == 4
    assert records_in(tmp_path, name="some") == []


def test_how_long_a_run_takes_is_told_from_those_before_it(tmp_path):
    pace = pace_of(1_000.0)
    pace.spent, pace.paid = 900.0, 1.0
    given = {"do": lambda n: {"value": n}, "folder": tmp_path, "name": "some", "part": ALL}
    dear = [Job(name="dear", cost=2.0, values=0)]
    assert work(dear, pace=pace, **given) == 1
    assert work(jobs(1), pace=pace, **given) == 0
    assert pace.paid == 2.0
    assert work(dear, pace=pace, **given) == 0  # the last was quick


def test_what_diverges_is_a_record_of_its_own(tmp_path):
    def do(number):
        if number == 0:
            raise FloatingPointError("loss is nan")
        return {"value": float("nan") if number == 1 else 2.0, "curve": [1.0]}

    work(jobs(3), do=do, folder=tmp_path, name="some", part=ALL, pace=pace_of(None))
    found = {r["run"]: r for r in records_in(tmp_path, name="some")}
    assert found["run 0"]["failed"] == "loss is nan"
    assert found["run 1"]["failed"] == "not finite: value"
    assert found["run 2"]["value"] == 2.0
    path = merge(tmp_path, name="some", results=tmp_path / "out", order=lambda r: r["run"])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [r["run"] for r in content["records"]] == ["run 0", "run 1", "run 2"]
    assert {"machine", "versions", "date"} <= set(content)
    assert "torch" in content["versions"]
    assert not {"machine", "versions"} & set(content["records"][0])


def test_what_another_process_does_is_left_to_it(tmp_path):
    given = {"do": lambda n: {"value": n}, "folder": tmp_path, "name": "some", "part": ALL}
    with claim(tmp_path, "run 1") as held:
        assert held is not None
        assert work(jobs(3), pace=pace_of(None), **given) == 1
        with claim(tmp_path, "run 1") as other:
            assert other is None
        assert not until_all(jobs(3), pace=pace_of(0.0), **given)
    assert sorted(r["value"] for r in records_in(tmp_path, name="some")) == [0, 2]
    assert until_all(jobs(3), pace=pace_of(None), **given)
    assert sorted(r["value"] for r in records_in(tmp_path, name="some")) == [0, 1, 2]


def test_a_run_that_breaks_takes_down_no_other(tmp_path, capsys):
    called = []

    def do(number):
        called.append(number)
        return {"value": [1, 2][number]}

    given = {"do": do, "folder": tmp_path, "name": "some", "pace": pace_of(None)}
    for _ in range(2):
        assert until_all(jobs(3), part=ALL, **given)
    assert called == [0, 1, 2]
    assert broken(tmp_path) == ["run 2"]
    assert "IndexError: list index out of range" in capsys.readouterr().err


def test_processes_are_started_each_with_its_part(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "found = os.environ['OMP_NUM_THREADS'], repr(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "print(*sys.argv[1:], *found)\n"
        "sys.exit(sys.argv[-1] == '1/2')\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = ["together", "--each", "2", "--logs", str(tmp_path / "logs"), "script", "--some"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        together.main()
    assert end.value.code == 1
    logs = [(tmp_path / "logs" / f"{n}.log").read_text(encoding="utf-8") for n in range(2)]
    assert logs == ["--some --shard 0/2 1 ''\n", "--some --shard 1/2 1 ''\n"]
    said = capsys.readouterr().out
    assert "1.log ended with 1" in said
    assert "2 processes, 1 of them failed" in said


def test_a_share_is_one_of_its_count():
    assert share("2/3") == Share(index=2, count=3)
    with pytest.raises(argparse.ArgumentTypeError, match="got 3/3"):
        share("3/3")


def test_documents_are_cut_at_lines_and_keep_all():
    text = "one\ntwo\n\nthree\nfour"
    found = texts.cut(text, characters=6)
    assert found == ["one\ntwo", "three", "four"]
    assert texts.parted([str(n) for n in range(40)])[1] == ["38", "39"]
