"""The page of performance is what the committed results say; the runner knows its scripts."""

import pytest

from benchmarks.__main__ import SCRIPTS
from benchmarks.performance import PAGE, measured, page, shown, table
from benchmarks.performance_sections import GOALS, SECTIONS, at_least, field
from tests.rules.source import ROOT


def test_the_page_is_what_the_results_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    if (ROOT / PAGE).read_text(encoding="utf-8") != page():
        pytest.fail("run python benchmarks/performance.py and commit the page", pytrace=False)


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


@pytest.mark.parametrize("device", SCRIPTS)
def test_the_runner_names_scripts_and_options_that_there_are(device):
    for name, options in SCRIPTS[device].items():
        source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in options if option.startswith("--")), name
        assert '"--output"' in source
