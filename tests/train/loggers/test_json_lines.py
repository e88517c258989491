"""Lines of JSON: on disk at once, and each step once however often a run is resumed."""

import json

import pytest

from memtx.train import JsonLines
from memtx.train.loggers import Logger, TensorBoard

RECORD = {"step": 1, "loss": 2.51234, "tokens_per_second": 12345.6, "gradient_norm": 0.1}


def logged(path, *, begin, steps, loss):
    logger = JsonLines(path=path)
    logger.begin(step=begin)
    for step in steps:
        logger.log({"step": step, "loss": loss})
    return logger


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_record_is_a_line_at_once(tmp_path):
    path = tmp_path / "a" / "b" / "metrics.jsonl"
    logger = JsonLines(path=str(path))
    assert isinstance(logger, Logger)
    logger.begin(step=0)
    logger.log(RECORD)
    # Read before it is closed: a run that dies keeps what it logged.
    assert read(path) == [RECORD]
    logger.log({"step": 2})
    logger.close()
    assert path.read_text().splitlines()[1] == '{"step": 2}'


def test_a_new_run_replaces_the_file_and_only_when_it_begins(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n", encoding="utf-8")
    logger = JsonLines(path=path)
    assert path.read_text() == "old\n"
    logger.begin(step=0)
    logger.log({"step": 1})
    logger.close()
    assert path.read_text() == '{"step": 1}\n'
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_run_keeps_what_came_before_and_replaces_what_came_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, begin=0, steps=[1, 2, 3, 4, 5], loss=1.0).close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    logged(path, begin=3, steps=[4, 5, 6, 7], loss=2.0).close()
    wanted = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0)]
    assert [(each["step"], each["loss"]) for each in read(path)] == wanted


@pytest.mark.parametrize("rubbish", ["not json\n", "[1]\n", "{}\n", '{"step": "x"}\n', "\0\0\n"])
def test_lines_that_are_no_records_do_not_survive_a_resume(tmp_path, rubbish):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{rubbish}{{"step": 2}}\n', encoding="utf-8")
    logged(path, begin=2, steps=[3], loss=0.5).close()
    assert [each["step"] for each in read(path)] == [1, 2, 3]


def test_a_resumed_run_without_its_file_begins_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, begin=5, steps=[6], loss=0.5).close()
    assert [each["step"] for each in read(path)] == [6]


def test_a_logger_takes_a_second_run_behind_the_first(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = logged(path, begin=0, steps=[1, 2], loss=1.0)
    logger.close()
    logger.begin(step=2)
    logger.log({"step": 3})
    logger.close()
    logger.close()
    assert [each["step"] for each in read(path)] == [1, 2, 3]


def test_outside_of_a_run_nothing_can_be_logged(tmp_path):
    logger = JsonLines(path=tmp_path / "metrics.jsonl")
    message = r"JsonLines: a record needs a run that has begun .*, got step=1; call begin\(step=0\)"
    with pytest.raises(ValueError, match=message):
        logger.log(RECORD)
    logger.begin(step=0)
    logger.close()
    with pytest.raises(ValueError, match=message):
        logger.log(RECORD)


def test_tensorboard_too_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"TensorBoard: a record needs a run .* got step=1;"):
        TensorBoard(folder=tmp_path).log(RECORD)


def test_a_place_that_cannot_be_written_is_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match=r"JsonLines: the place to write must .*file/metrics\.jsonl"):
        JsonLines(path=tmp_path / "file" / "metrics.jsonl")


def test_what_is_not_finite_is_null_in_json(tmp_path):
    logger = JsonLines(path=tmp_path / "metrics.jsonl")
    logger.begin(step=0)
    logger.log({"step": 1, "loss": float("nan"), "recall": float("inf")})
    logger.close()
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == '{"step": 1, "loss": null, "recall": null}\n'
