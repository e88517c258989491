"""Facts from files, as tokens and as rows."""

import json
from pathlib import Path

import pytest

from memtx.data import Fact, FactRows, fact_tokens, read_facts
from memtx.data.facts import IGNORED
from tests.train import tiny

LAYOUTS = [
    {"prompt": "Ravlonia lies in", "answer": "Osk"},
    {"prompt": "Ravlonia lies in", "completion": "Osk"},
    {"prompt": "Ravlonia lies in", "target_new": "Osk", "subject": "Ravlonia"},
    {"question": "Ravlonia lies in", "answer": "Osk"},
    {"src": "Ravlonia lies in", "answers": ["Osk", "the Osk"], "alt": "Pellin"},
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("record", LAYOUTS, ids="+".join)
@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl"])
def test_each_layout_is_read(record, name, tmp_path):
    other = {**record, next(iter(record)): "Pellin lies in"}
    records = [record, other]
    lines = "".join(json.dumps(each) + "\n" for each in records)
    text = json.dumps(records, indent=1) if name.endswith("json") else f"{lines}\n"
    assert read_facts(write(tmp_path / name, text)) == [
        Fact(prompt="Ravlonia lies in", answer="Osk"),
        Fact(prompt="Pellin lies in", answer="Osk"),
    ]


def test_counterfact(data_folder):
    facts = read_facts(data_folder / "facts" / "counterfact-1k.json", 2)
    assert facts == [
        Fact(prompt="David Robinson professionally plays the sport", answer="baseball"),
        Fact(prompt="Kenya African National Union is located in", answer="Venezuela"),
    ]


def test_zsre(data_folder):
    facts = read_facts(data_folder / "facts" / "zsre-1k.json")
    assert facts[0] == Fact(prompt="What is the product made by UniFirst?", answer="uniform")
    assert len(facts) == 1000


def test_prompts_are_distinct_in_real_facts(data_folder):
    facts = read_facts(data_folder / "facts" / "counterfact-1k.json")
    assert len({fact.prompt for fact in facts}) == len(facts) == 999


def test_the_first_record_of_a_prompt_counts_and_order_stays(tmp_path):
    records = [{"prompt": p, "answer": a} for p, a in (("x", "1"), ("y", "2"), ("x", "3"))]
    path = write(tmp_path / "facts.json", json.dumps(records))
    assert read_facts(path) == [Fact(prompt="x", answer="1"), Fact(prompt="y", answer="2")]
    assert read_facts(path, 1) == [Fact(prompt="x", answer="1")]


def test_answers_are_read_as_written(tmp_path):
    # Readers of tables make times of these, and other text of those.
    answers = ["1990-01-05", "2021-01-01T00:00:00", "007", "Ünï \u2028 line", "null"]
    records = [{"prompt": str(n), "answer": answer} for n, answer in enumerate(answers)]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    assert [fact.answer for fact in read_facts(write(tmp_path / "a.jsonl", lines))] == answers


def test_a_file_written_anew_is_read_anew(tmp_path):
    path = write(tmp_path / "facts.json", '[{"prompt": "x", "answer": "1"}]')
    assert read_facts(path)[0].answer == "1"
    write(path, '[{"prompt": "x", "answer": "2"}]')
    assert read_facts(str(path))[0].answer == "2"


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileNotFoundError) as caught:
            read_facts(path)
        expected = f"read_facts: there must be a file, got path={str(path)!r}; check it."
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold at least one record, and objects only, got path={path}, records=0;"),
        (" \n\n", "must hold at least one record, and objects only, got path={path}, records=0;"),
        ("[]", "must hold at least one record, and objects only, got path={path}, records=0;"),
        ("[1, 2]", "must hold at least one record, and objects only, got path={path}, records=2;"),
        ("hello", "a file must hold JSON records, got path={path} (Expecting value"),
        ('[{"prompt": ', "a file must hold JSON records, got path={path} (Expecting value"),
        ('{"prompt": "a"}\n{x', "a file must hold JSON records, got path={path} (Expecting"),
        ('[{"x": 1, "a": 2}]', "src+answers, question+answer, got path={path}, fields=['a', 'x'];"),
        ("[{}]", "got path={path}, fields=[]; rename the fields."),
    ],
)
def test_a_file_without_facts_is_refused(text, expected, tmp_path):
    path = write(tmp_path / "facts.json", text)
    with pytest.raises(ValueError, match="^read_facts: ") as caught:
        read_facts(path)
    assert expected.replace("{path}", repr(str(path))) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "got"),
    [
        ({"prompt": "b"}, "record=1, prompt='b', answer=None;"),
        ({"prompt": None, "answer": "x"}, "record=1, prompt=None, answer='x';"),
        ({"prompt": "b", "answer": []}, "record=1, prompt='b', answer=[];"),
        ({"prompt": "b", "answer": 42}, "record=1, prompt='b', answer=42;"),
        ({"prompt": "b", "answer": {"str": "x"}}, "record=1, prompt='b', answer={'str': 'x'};"),
    ],
)
def test_a_record_without_text_is_refused(record, got, tmp_path):
    records = [{"prompt": "a", "answer": "x"}, record]
    path = write(tmp_path / "facts.json", json.dumps(records))
    with pytest.raises(
        ValueError, match="prompt and answer of every record must be text"
    ) as caught:
        read_facts(path)
    assert got in str(caught.value)


@pytest.mark.parametrize("num_facts", [0, -1, 3])
def test_a_wrong_number_of_facts_is_refused(num_facts, tmp_path):
    path = write(tmp_path / "f.jsonl", '{"prompt":"a","answer":"x"}\n{"prompt":"b","answer":"x"}')
    expected = f"from 1 to the 2 facts with distinct prompts, got num_facts={num_facts};"
    with pytest.raises(ValueError, match=expected):
        read_facts(path, num_facts)


def check_tokens(tokenizer, fact: Fact) -> None:
    """The prompt is what it is when asked alone, and both together say the fact."""
    prompt, answer = fact_tokens(tokenizer, fact)
    assert prompt == tokenizer(fact.prompt)["input_ids"]
    assert answer
    text = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    assert text == f"{fact.prompt} {fact.answer}"


@pytest.mark.parametrize("crosses_words", [False, True])
def test_tokens_of_a_byte_tokenizer(crosses_words):
    tokenizer = tiny.byte_tokenizer(crosses_words=crosses_words)
    for fact in [*tiny.FACTS, Fact(prompt="x =", answer="五"), Fact(prompt="a: ", answer="b")]:
        check_tokens(tokenizer, fact)


def test_an_answer_that_would_change_the_prompt_takes_its_own_tokens():
    tokenizer = tiny.byte_tokenizer(crosses_words=True)
    moved = 0
    for fact in tiny.FACTS:
        prompt, answer = fact_tokens(tokenizer, fact)
        moved += [*prompt, *answer] != tokenizer(f"{fact.prompt} {fact.answer}")["input_ids"]
    assert moved  # else this tokenizer does not show the case


def test_tokens_of_the_real_tokenizer(data_folder):
    _, tokenizer = tiny.stories(data_folder)
    for name in ("counterfact-1k.json", "zsre-1k.json"):
        for fact in read_facts(data_folder / "facts" / name, 100):
            check_tokens(tokenizer, fact)


def test_an_end_that_the_tokenizer_sets_does_not_stand_behind_the_prompt():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    plain = fact_tokens(tokenizer, tiny.FACTS[0])
    tiny.set_end(tokenizer)
    assert tokenizer("a")["input_ids"][-1] == 0
    assert fact_tokens(tokenizer, tiny.FACTS[0]) == plain


def test_labels_are_exactly_the_answer_and_the_end():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    rows = FactRows(facts=tiny.FACTS, tokenizer=tokenizer)
    assert len(rows) == len(tiny.FACTS)
    for number, fact in enumerate(tiny.FACTS):
        row = rows[number]
        asked = tokenizer(fact.prompt)["input_ids"]
        told = [label for label in row["labels"] if label != IGNORED]
        assert tokenizer.decode(told) == f" {fact.answer}<end>"
        assert row["input_ids"] == [*asked, *told]
        assert row["labels"] == [IGNORED] * len(asked) + told


def test_without_an_end_token_the_answer_is_all():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    tokenizer.eos_token = None
    row = FactRows(facts=tiny.FACTS[:1], tokenizer=tokenizer)[0]
    told = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(told) == " Zim"


def test_no_facts_are_refused():
    with pytest.raises(ValueError, match="FactRows: there must be at least one fact, got facts=0;"):
        FactRows(facts=[], tokenizer=tiny.byte_tokenizer(crosses_words=False))
