"""examples/instruct.py: on the real small Llama, and what it refuses."""

import json
import re

import pytest

from memtx import load_adapter
from tests.examples.processes import script, workplace
from tests.examples.scripts import refusal_of, run_here
from tests.train import tiny

BACKGROUND = "\n\n".join(f"{t} So it went on day {n}." for n in range(40) for t in tiny.DOCUMENTS)


@pytest.fixture(scope="module")
def taught(data_folder, tmp_path_factory):
    folder = workplace(tmp_path_factory.mktemp("instruct"))
    stories = (data_folder / "text" / "tinystories.txt").read_text(encoding="utf-8")[:100_000]
    (folder / "stories.txt").write_text(stories.replace("\n", "\n\n"), encoding="utf-8")
    rows = json.loads((data_folder / "instruct" / "instruction-data.json").read_text("utf-8"))
    (folder / "chats.json").write_text(json.dumps(rows[:200]), encoding="utf-8")
    arguments = ["--base", str(data_folder / "models" / "stories260K"), "--data", "chats.json"]
    arguments += ["--background", "stories.txt", "--steps", "20", "--row-length", "128"]
    done = script("instruct", arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_answers_become_likelier_and_the_background_stays(taught):
    rows = re.findall(r"(?m)^(answers|background)[a-z ]+ +([\d.]+) +([\d.]+)$", taught[1])
    assert [name for name, *_ in rows] == ["answers", "answers", "background"]
    for _, off, on in rows[:2]:
        assert float(on) < float(off) - 0.5
    _, off, on = rows[2]
    assert float(on) < float(off) + 0.15


def test_what_it_saves_is_an_artifact(taught, data_folder):
    base = tiny.stories(data_folder)[0]
    adapter = load_adapter(taught[0] / "runs" / "instruct" / "memory", base=base)
    assert any(p.abs().sum() > 0 for p in adapter.memory_parameters())


def write_base(folder):
    tiny.base(seed=0).save_pretrained(folder / "base")
    tiny.byte_tokenizer(crosses_words=False).save_pretrained(folder / "base")
    (folder / "text.txt").write_text(BACKGROUND, encoding="utf-8")


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": "Where?"},
                {"role": "assistant", "content": "Here."},
            ]
        },
        {"prompt": "Where?", "completion": "Here."},
        {"question": "Where?", "answer": "Here."},
        {"instruction": "Say where.", "input": "", "output": "Here."},
        {"instruction": "Say where.", "output": "Here."},
    ],
    ids=["messages", "completion", "answer", "instruction", "no-input"],
)
def test_every_layout_is_found(row, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path)
    (tmp_path / "chats.json").write_text(json.dumps([row] * 40), encoding="utf-8")
    arguments = ["--base", "base", "--data", "chats.json", "--background", "text.txt"]
    run_here(monkeypatch, "instruct", [*arguments, "--steps", "2", "--row-length", "64"])
    assert "answers that were taught" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--base", "base"], "--base, --data and --background go together, got base='base'"),
        (["--base", "b", "--data", "d.json", "--background", "text.txt"], "data='d.json'"),
        (
            ["--base", "b", "--data", "odd.json", "--background", "text.txt"],
            "--base must be a model folder or hub id, got base='b'",
        ),
        (
            ["--base", "base", "--data", "odd.json", "--background", "text.txt"],
            "got fields=['a', 'b']; rename them with dataset.rename_column",
        ),
        (
            ["--base", "base", "--data", "odd.json", "--background", "no.txt"],
            "--background must be a file of text, got background='no.txt' (",
        ),
        (
            ["--base", "base", "--data", "odd.json", "--background", "one.txt"],
            "got background='one.txt', paragraphs=1; pass more",
        ),
        (
            ["--base", "base", "--data", "few.json", "--background", "text.txt"],
            "--data must hold at least 10 rows, as a tenth is asked and not taught, got rows=9",
        ),
        (
            ["--base", "base", "--data", "blank.json", "--background", "text.txt"],
            "--data must be a file of conversations or a dataset, got data='blank.json'",
        ),
    ],
)
def test_refusals(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path)
    (tmp_path / "odd.json").write_text(json.dumps([{"a": "x", "b": "y"}] * 40), encoding="utf-8")
    few = [{"prompt": "Where?", "completion": "Here."}] * 9
    (tmp_path / "few.json").write_text(json.dumps(few), encoding="utf-8")
    (tmp_path / "blank.json").write_text("", encoding="utf-8")
    (tmp_path / "one.txt").write_text("One paragraph.", encoding="utf-8")
    assert expected in refusal_of(monkeypatch, "instruct", arguments)


def test_rows_longer_than_the_context_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path)
    row = {"prompt": "Where?", "completion": "Here."}
    (tmp_path / "chats.json").write_text(json.dumps([row] * 40), encoding="utf-8")
    arguments = ["--base", "base", "--data", "chats.json", "--background", "text.txt"]
    refused = refusal_of(monkeypatch, "instruct", [*arguments, "--row-length", "100000"])
    longest = tiny.base(seed=0).config.max_position_embeddings
    assert f"got row_length=100000, max_position_embeddings={longest}; pass a smaller" in refused
