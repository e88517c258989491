"""The bar, read as a console of 80 columns shows it."""

import re

import pytest

from memtx.train import ProgressBar
from memtx.train.loggers import progress_bar

RECORD = {
    "loss": 2.51234,
    "facts": 2.3,
    "facts/LoadBalanceLoss(0.01)": 1.02,
    "gradient_norm": 0.5312,
    "learning_rate/bank": 1e-3,
    "learning_rate/reading": 3e-4,
    "tokens_per_second": 45452.3,
    "step_seconds": 0.36,
}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def on_terminal(request, monkeypatch):
    """A console of 80 columns that is, or is not, a terminal; every record is shown."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if request.param else "0")
    monkeypatch.setattr(progress_bar, "REDRAWN", 0.0)
    monkeypatch.setattr(progress_bar, "PRINTED", 0.0)
    return request.param


def shown(capsys):
    return re.split(r"[\r\n]+", ESCAPES.sub("", capsys.readouterr().err))


def follow(*, title, records, begin, total):
    bar = ProgressBar(title=title, total_steps=total)
    bar.begin(step=begin)
    for record in records:
        bar.log(record)
    bar.close()


def test_it_shows_title_step_loss_and_speed_within_80_columns(on_terminal, capsys):
    records = [{"step": step} | RECORD for step in (1201, 1202)]
    follow(title="teach", records=records, begin=1200, total=20_000)
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    last = [line for line in lines if line.startswith("teach")][-1]
    assert last.startswith("teach ")
    assert "1,202/20,000  loss 2.512  45,452 tok/s" in last
    if on_terminal:
        # What time is left is known once two steps are done.
        assert re.search(r"\d:\d\d:\d\d$", last)
        assert lines[-3:-1] == [
            "  facts 2.300  facts/LoadBalanceLoss(0.01) 1.020  gradient_norm 0.531",
            "  learning_rate/bank 1.00e-03  learning_rate/reading 3.00e-04 …",
        ]


def test_what_comes_now_and_then_is_printed_and_stays(on_terminal, capsys):
    rare = {"recall": 0.98, "held_out": 2.3102}
    records = [{"step": step} | RECORD | (rare if step == 2 else {}) for step in (1, 2, 3)]
    follow(title="teach", records=records, begin=0, total=3)
    lines = shown(capsys)
    assert "teach step 2: recall 0.980  held_out 2.310" in lines
    assert sum("recall" in line for line in lines) == 1


def test_of_many_rare_numbers_two_lines_are_printed(on_terminal, capsys):
    rare = {f"router/layers.{n}.sublayers.0.sublayer/dead": 0.0 for n in range(9)}
    records = [{"step": 1} | RECORD, {"step": 2} | RECORD | rare]
    follow(title="teach", records=records, begin=0, total=3)
    lines = [line for line in shown(capsys) if "router/" in line]
    assert lines[0].startswith("teach step 2: router/layers.0.sublayers.0.sublayer/dead 0")
    assert [line.endswith(" …") for line in lines] == [False, True]
    assert max(map(len, lines)) <= 80


def test_a_long_title_with_brackets_leaves_room_for_the_numbers(on_terminal, capsys):
    title = "[bold]a very long title of a run[/bold]"
    follow(title=title, records=[{"step": 1} | RECORD], begin=0, total=10)
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("[bold]") and "loss 2.512" in line for line in lines)


def test_a_record_without_loss_and_speed_moves_it(on_terminal, capsys):
    follow(title="teach", records=[{"step": 5}, {"step": 8}], begin=0, total=10)
    assert any("8/10" in line for line in shown(capsys))


def test_numbers_that_are_not_finite_or_extreme_are_shown(on_terminal, capsys):
    values = {"loss": float("nan"), "a": float("inf"), "b": 1e-9, "c": 1e20, "d": 0.0}
    follow(title="teach", records=[{"step": 1} | values], begin=0, total=10)
    text = "\n".join(shown(capsys))
    assert "loss nan" in text
    if on_terminal:
        assert "a inf  b 1.00e-09  c 1.00e+20  d 0" in text


def test_where_there_is_no_terminal_a_line_comes_every_ten_seconds(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    follow(title="t", records=[{"step": step} for step in range(1, 100)], begin=0, total=99)
    assert [line for line in shown(capsys) if line] == ["t 1/99", "t 99/99"]


def test_a_bar_that_never_began_closes_in_silence(capsys):
    ProgressBar(title="teach", total_steps=2).close()
    assert capsys.readouterr().err == ""


def test_a_record_needs_a_run():
    with pytest.raises(ValueError, match=r"ProgressBar: a record needs a run .* got step=3;"):
        ProgressBar(title="teach", total_steps=9).log({"step": 3})


def test_a_bar_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="ProgressBar: total_steps must .* got total_steps=0;"):
        ProgressBar(title="teach", total_steps=0)
