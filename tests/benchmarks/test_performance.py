"""The page of performance is what the committed results say; the runner knows its scripts."""

import pytest

from benchmarks import performance
from benchmarks.__main__ import SCRIPTS
from benchmarks.performance import (
    PAGE,
    grown,
    measured,
    page,
    picture,
    records_of,
    section,
    shown,
    spent,
    table,
)
from benchmarks.performance_goals import GOALS, REASONS, at_least, at_most, field, over, share
from benchmarks.performance_goals import grown as of_largest_bank
from benchmarks.performance_plots import PLOTS
from benchmarks.performance_sections import SECTIONS, Section
from tests.rules.source import ROOT


def test_the_page_is_what_the_results_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    if (ROOT / PAGE).read_text(encoding="utf-8") != page():
        pytest.fail("run python benchmarks/performance.py and commit the page", pytrace=False)


def test_the_plots_beside_the_page_are_of_the_results(monkeypatch):
    """By what is written into them: no test draws them all again."""
    monkeypatch.chdir(ROOT)
    plots = [plot for name in PLOTS if (plot := picture(name, records_of)) is not None]
    folder = (ROOT / PAGE).parent
    assert {path.name for path in folder.glob("performance-*.png")} == {p.path.name for p in plots}
    for plot in plots:
        if plot.digest.encode() not in (folder / plot.path.name).read_bytes():
            pytest.fail(f"run python benchmarks/performance.py for {plot.path}", pytrace=False)


def test_every_plot_is_shown_where_its_records_are():
    drawn = [(name, of) for of in SECTIONS for name in of.plots]
    assert sorted(name for name, _ in drawn) == sorted(PLOTS)
    for name, of in drawn:
        assert set(PLOTS[name].results) <= set(of.results)


def test_what_was_not_measured_is_said_not_to_be_drawn(monkeypatch):
    monkeypatch.setattr(performance, "records_of", lambda _: None)
    of = Section(title="T", text="t", results=["bank_size"], plots=["bank-size"], without=[])
    lines = "\n".join(section(of))
    assert "bank_size.json`: not measured, and what is drawn of it is left out." in lines
    assert "![" not in lines


def test_what_failed_is_told_below_the_table(monkeypatch):
    records = [
        {"case": "c", "variant": "v", "milliseconds": 1.0, "at": 4},
        {"case": "c", "variant": "w", "milliseconds": None, "at": 4, "error": "MemoryError: full"},
    ]
    found = {"machine": "m", "versions": {}, "date": "2026-11-22", "records": records}
    monkeypatch.setattr(performance, "records_of", lambda _: found)
    of = Section(title="T", text="t", results=["some"], plots=[], without=[])
    assert list(section(of))[-1] == "- c, 4, `w`: MemoryError: full"


def test_every_result_is_on_the_page():
    shown_files = {name for section in SECTIONS for name in section.results}
    files = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    # Sizes that measure nothing, and what has pages of its own.
    others = {name for name in files if name.endswith("_tiny") or name.startswith("evidence_")}
    assert files - others - {"associative_recall"} <= shown_files


def test_goals_are_read_off_the_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    for goal in GOALS:
        value = measured(goal)
        assert value is None or value > 0.0, goal.work
    absent = at_least(
        "nothing", ("no_such_file", "case", "variant"), field("milliseconds"), 1, "ms"
    )
    assert measured(absent) is None


def test_goals_have_names_of_their_own_and_reasons_belong_to_one():
    works = [goal.work for goal in GOALS]
    assert len(set(works)) == len(works)
    assert set(REASONS) <= set(works)


def test_a_goal_is_the_first_record_that_has_its_number(monkeypatch):
    records = [
        {"case": "371M step", "variant": "v", "num_memory_tokens": 2**14, "ratio": 1.0},
        {"case": "371M step", "variant": "v", "num_memory_tokens": 2**20, "ratio": 1.08},
    ]
    monkeypatch.setattr(performance, "records_of", lambda _: {"records": records})
    goal = at_most("w", ("f", "step", "v"), of_largest_bank("ratio"), 1.1, "x")
    assert measured(goal) == 1.08


def test_ratios_and_shares_are_read_where_they_are():
    record = {"ratios": {"memtx": {"time": 1.02}}, "peak_gib": 1.0, "bank_gib": 4.0}
    assert over("memtx", "time")(record) == 1.02
    assert over("memtx-compiled", "time")(record) is None
    assert share("peak_gib", "bank_gib")(record) == 0.25
    assert share("peak_gib", "bank_gib")({"peak_gib": None, "bank_gib": 4.0}) is None


def test_a_goal_that_was_missed_is_followed_by_its_reason(monkeypatch):
    record = {"case": "step", "variant": "v", "milliseconds": 2.0}
    given = [
        at_most("missed", ("f", "step", "v"), field("milliseconds"), 1.0, "ms"),
        at_most("reached", ("f", "step", "v"), field("milliseconds"), 3.0, "ms"),
    ]
    monkeypatch.setattr(performance, "records_of", lambda _: {"records": [record]})
    monkeypatch.setattr(performance, "GOALS", given)
    monkeypatch.setattr(performance, "REASONS", {"missed": "\nBound.\n", "reached": "No."})
    lines = list(performance.goals())
    assert lines[-3:] == [
        "| missed | at most 1.00 ms | 2.00 | **not reached** |",
        "| reached | at most 3.00 ms | 2.00 | reached |",
        "\nNot reached: missed. Bound.",
    ]


def test_numbers_have_three_figures():
    assert [shown(x) for x in (None, 1234.5, 123.45, 12.345, 1.2345, 0.01234, "-")] == [
        "-",
        "1,234",
        "123",
        "12.3",
        "1.23",
        "0.0123",
        "-",
    ]


def test_a_table_has_the_columns_that_records_have():
    record = {"case": "c", "variant": "v", "milliseconds": 2.0, "peak_gib": None, "efficiency": 0.5}
    lines = list(table([record]))
    assert lines[0] == "| case | variant | ms | GiB | ratio | efficiency |"
    assert lines[2] == "| c | `v` | 2.00 | - | - | 0.50 |"


def test_growing_sizes_are_rows_and_variants_columns():
    records = [
        {"case": "c", "variant": variant, "at": at, "milliseconds": time}
        for variant, at, time in (("v", 1, 1.0), ("w", 1, 4.0), ("v", 2, 2.0))
    ]
    assert list(grown(records)) == [
        "| case | at | `v`, ms | `w`, ms |",
        "|---|---|---|---|",
        "| c | 1 | 1.00 | 4.00 |",
        "| c | 2 | 2.00 | - |",
    ]


def test_what_a_step_spends_is_set_over_its_floor():
    record = {"case": "c", "variant": "v", "milliseconds": 4.0, "floor_milliseconds": 2.0}
    lines = list(spent([{**record, "kernels": {"idle": 1.0, "attention": 3.0}}]))
    assert lines[0] == "| case | variant | ms | floor, ms | over floor | attention | idle |"
    assert lines[2] == "| c | `v` | 4.00 | 2.00 | 2.00 | 3.00 | 1.00 |"


@pytest.mark.parametrize("device", SCRIPTS)
def test_the_runner_names_scripts_and_options_that_there_are(device):
    for name, runs in SCRIPTS[device].items():
        source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        options = [option for run in runs for option in run if option.startswith("--")]
        assert all(f'"{option}"' in source for option in options), name
        assert '"--output"' in source
