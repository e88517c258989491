"""The tables of docs/learning.md are those of the results, and these keep what is required."""

import pytest

from benchmarks.evidence.tables import TABLES, records
from tests.rules.source import ROOT

PAGE = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_tables_stand_in_the_page(name):
    lines = TABLES[name]()
    assert len(lines) > 2
    assert "\n".join(lines) in PAGE


def test_a_hundred_facts_cost_the_rest_little():
    best = {each["method"]: each for each in records("evidence_reading")}
    recipe = best["unit and sinks, upper layers, longer"]
    assert recipe["recall"] >= 0.95
    assert recipe["background_perplexity_rise"] <= 0.03


@pytest.mark.parametrize("case", ["recipe", "section of the manual"])
def test_a_document_is_learned(case):
    recipe = next(each for each in records("evidence_document") if each["case"] == case)
    assert recipe["text_loss_fall"] >= 0.40
    assert recipe["background_loss_rise"] <= 0.03


def test_deleted_chapters_take_their_facts_with_them():
    for each in records("evidence_deletion"):
        assert each["without A: recall of A"] <= 0.05
        assert each["without A: recall of B"] >= 0.95
