"""Where numbers go: lines of JSON and a bar."""

import json
import re

import pytest

from memtx.train import JsonLines, ProgressBar

RECORD = {"step": 1, "loss": 2.51234, "tokens_per_second": 12345.6, "gradient_norm": 0.1}


def test_each_record_is_a_line_at_once(tmp_path):
    path = tmp_path / "a" / "b" / "metrics.jsonl"
    logger = JsonLines(path=str(path))
    logger.log(RECORD)
    # Read before it is closed: a run that dies keeps what it logged.
    assert [json.loads(line) for line in path.read_text().splitlines()] == [RECORD]
    logger.log({"step": 2})
    logger.close()
    assert path.read_text().splitlines()[1] == '{"step": 2}'


def test_a_new_run_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n", encoding="utf-8")
    logger = JsonLines(path=path)
    logger.log({"step": 1})
    logger.close()
    assert path.read_text() == '{"step": 1}\n'


def test_after_close_nothing_can_be_logged(tmp_path):
    logger = JsonLines(path=tmp_path / "metrics.jsonl")
    logger.close()
    with pytest.raises(ValueError, match="closed file"):
        logger.log(RECORD)


def test_a_place_that_cannot_be_written_is_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        JsonLines(path=tmp_path / "file" / "metrics.jsonl")


def test_the_bar_shows_title_loss_speed_and_time_left(capsys):
    bar = ProgressBar(title="teach", total_steps=4)
    for step in (1, 2, 3):
        bar.log({**RECORD, "step": step, "loss": 2.51234 - step})
    bar.close()
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("teach:  75%")
    assert "3/4" in last
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d,", last)  # time spent and time left
    assert "loss -0.488, 12,346 tok/s" in last


def test_the_bar_follows_the_number_of_the_step(capsys):
    bar = ProgressBar(title="teach", total_steps=10)
    bar.log({"step": 5})  # a record without a loss moves it too
    bar.log({**RECORD, "step": 8})
    bar.close()
    assert "8/10" in capsys.readouterr().err.split("\r")[-1]


def test_a_bar_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="ProgressBar: total_steps must .* got total_steps=0;"):
        ProgressBar(title="teach", total_steps=0)


def test_what_is_not_finite_is_null_in_json(tmp_path):
    logger = JsonLines(path=tmp_path / "metrics.jsonl")
    logger.log({"step": 1, "loss": float("nan"), "recall": float("inf")})
    logger.close()
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == '{"step": 1, "loss": null, "recall": null}\n'
