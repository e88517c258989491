"""Edits and multiple-choice questions from files, by the fields that a user names."""

import json
from dataclasses import replace

import pytest

from memtx.data import Edit, EditFields, Fact, Question, read_edits, read_facts, read_questions

FIELDS = EditFields(
    prompt="ask",
    target_new="new",
    target_true="old",
    paraphrases="other",
    neighbours="near",
    neighbour_answers="stays",
)
RECORD = {"ask": "A is", "new": "b", "old": "c", "other": "As are", "near": "D is", "stays": "e"}
EDIT = Edit(
    prompt="A is",
    target_new="b",
    target_true="c",
    paraphrases=["As are"],
    neighbours=[Fact(prompt="D is", answer="e")],
)


def write(folder, records):
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_counterfact(data_folder):
    path = data_folder / "facts" / "counterfact-1k.json"
    fields = EditFields(
        prompt="prompt",
        target_new="target_new",
        target_true="ground_truth",
        paraphrases="rephrase_prompt",
        neighbours="locality_prompt",
        neighbour_answers="locality_ground_truth",
    )
    edits = read_edits(path, fields)
    assert [edit.fact for edit in edits] == read_facts(path)
    assert len(edits) == 999
    assert edits[0].neighbours == [Fact(prompt="Shaquille O'Neal plays", answer="basketball")]
    assert read_edits(path, fields, 3) == edits[:3]


def test_zsre(data_folder):
    fields = EditFields(
        prompt="src",
        target_new="alt",
        target_true="answers",
        paraphrases="rephrase",
        neighbours="loc",
        neighbour_answers="loc_ans",
    )
    path = data_folder / "facts" / "zsre-1k.json"
    edits = read_edits(path, fields)
    assert (edits[0].target_new, edits[0].target_true) == ("unmanned aircraft", "uniform")
    assert edits[0].paraphrases == ["What will be the product of UniFirst?"]
    # Two records have no new answer.
    assert len(edits) == 998
    assert len(read_edits(path, replace(fields, target_new="answers", target_true=None))) == 1000


def test_lists_and_absent_parts(tmp_path):
    lists = RECORD | {
        "old": ["c", "C"],
        "other": ["As are", "", "An A is"],
        "near": ["D is", "E is"],
    }
    (one,) = read_edits(write(tmp_path, [lists]), FIELDS)
    assert one.target_true == "c"
    assert one.paraphrases == ["As are", "An A is"]
    assert one.neighbours == [Fact(prompt=f"{name} is", answer="e") for name in "DE"]
    fields = EditFields(
        prompt="ask",
        target_new="new",
        target_true=None,
        paraphrases=None,
        neighbours=None,
        neighbour_answers=None,
    )
    (bare,) = read_edits(write(tmp_path, [RECORD]), fields)
    assert bare == replace(EDIT, target_true=None, paraphrases=[], neighbours=[])


def test_the_first_of_a_prompt_counts_and_empty_answers_are_left_out(tmp_path):
    records = [RECORD, RECORD | {"new": "z"}, RECORD | {"ask": "B is", "new": " "}]
    assert read_edits(write(tmp_path, records), FIELDS) == [EDIT]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([RECORD, {"ask": "B"}], "must hold text in the field 'near', got .*record=1, near=None"),
        ([RECORD | {"new": 3}], "the field 'new', got .*record=0, new=3, fields="),
        ([RECORD | {"other": []}], "the field 'other', got .*other="),
        ([RECORD | {"stays": ["e", "f"]}], "one answer for each .* neighbours=1, answers=2;"),
        ([RECORD | {"new": ""}], "at least one record with a prompt .* edits=0;"),
        ([], "at least one record, and objects only, got .*records=0;"),
    ],
)
def test_files_without_edits_are_refused(records, message, tmp_path):
    with pytest.raises(ValueError, match=f"read_edits: .*{message}"):
        read_edits(write(tmp_path, records), FIELDS)


def test_numbers_and_fields_are_checked(tmp_path):
    with pytest.raises(ValueError, match="num_edits must be from 1 to the 1 .* got num_edits=2;"):
        read_edits(write(tmp_path, [RECORD]), FIELDS, 2)
    message = "EditFields: .* got neighbours='near', neighbour_answers=None;"
    with pytest.raises(ValueError, match=message):
        replace(FIELDS, neighbour_answers=None)
    with pytest.raises(FileNotFoundError, match="read_edits: there must be a file, got path="):
        read_edits(tmp_path / "none.json", FIELDS)


WANTED = Question(context="Grass is", choices=["green", "blue"], answer=1)


def read(path, number):
    return read_questions(path, context="q", choices="c", answer="a", num_questions=number)


@pytest.mark.parametrize(
    "record",
    [
        {"c": ["green", "blue"], "a": 1},
        {"c": ["green", "blue"], "a": "blue"},
        {"c": {"text": ["green", "blue"], "label": ["A", "B"]}, "a": "B"},
    ],
)
def test_questions(record, tmp_path):
    path = write(tmp_path, [{"q": "Grass is", **record}] * 2)
    assert read(path, None) == [WANTED, WANTED]
    assert read(path, 1) == [WANTED]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"q": "x", "c": ["a", "b"], "a": 2}, "read_questions: .* got record=0, q='x', .*a=2;"),
        ({"q": "x", "c": ["a", "b"], "a": "z"}, "a='z';"),
        ({"q": "x", "c": "ab", "a": 0}, "c='ab', a=0;"),
        ({"c": ["a", "b"], "a": 0}, "q=None, "),
        ({"q": "x", "c": ["a"], "a": 0}, r"Question: .* at least two choices, .* choices=\['a'\];"),
    ],
)
def test_records_without_a_question_are_refused(record, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, [record]), None)


def test_answers_and_numbers_of_questions_are_checked(tmp_path):
    with pytest.raises(ValueError, match="Question: answer must be from 0 to 1, got answer=2;"):
        Question(context="x", choices=["a", "b"], answer=2)
    path = write(tmp_path, [{"q": "Grass is", "c": ["green", "blue"], "a": 1}])
    with pytest.raises(ValueError, match="num_questions must .* got num_questions=3;"):
        read(path, 3)
