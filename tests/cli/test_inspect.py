"""`memtx inspect`: what it writes, what it says, and what it refuses."""

import json

import pytest

from memtx import Site, TokenRouting, cli, save
from tests import routing
from tests.adapters.bases import llama, working_adapter
from tests.usage.report.pages import Page
from tests.usage.words import tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base with a tokenizer, a memory for it, and a whole model with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("saved")
    base = llama()
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    save(working_adapter(base, Site.AFTER_MLP), folder / "memory")
    save(routing.transformer(TokenRouting(), losses=[]), folder / "model")
    tokenizer().save_pretrained(folder / "model")
    return folder


def call(capsys, arguments):
    code = cli.run(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def data_of(path):
    return json.loads(Page(path.read_text(encoding="utf-8")).scripts[0][1])


def test_a_memory_in_its_base(folder, tmp_path, capsys):
    report = tmp_path / "new" / "report.html"
    given = ["--base", folder / "base", "--text", "w2 w3 w4", "--output", report]
    code, out, err = call(capsys, [folder / "memory", *given])
    assert (code, err) == (0, "reading 1 text(s)\n")
    first, last = out.splitlines()
    assert first.startswith("w2 w3 w4: 3 tokens; loss ")
    assert last.startswith(f"wrote {report} (0.0")
    data = data_of(report)
    assert data["title"] == "What memory was read for"
    # A 16th of 7 memory tokens, at least one.
    assert [each["tokens_per_chapter"] for each in data["readers"]] == [1, 1]


def test_a_whole_model_with_files_an_answer_pictures_and_json(folder, tmp_path, capsys):
    report, text = tmp_path / "report.html", tmp_path / "one.txt"
    text.write_text("w5 w6 w7 w8", encoding="utf-8")
    given = ["--text-file", text, "--text-file", text, "--prompt", "w2 w3", "--answer", "w4"]
    more = ["--output", report, "--plots", tmp_path / "plots", "--max-tokens", "3", "--json"]
    code, out, err = call(capsys, [folder / "model", *given, *more])
    assert (code, err) == (0, "reading 2 text(s)\n")
    told = json.loads(out)
    assert (told["output"], told["bytes"]) == (str(report), report.stat().st_size)
    assert [(each["name"], each["tokens"]) for each in told["texts"]] == [
        ("one.txt", 3),
        ("one.txt (2)", 3),
    ]
    assert told["texts"][0]["cut"] is True
    # Those that the three tokens read: a shared one, and two for each at either reader.
    assert 3 <= len(told["effects"]["chapters"]) <= routing.CHAPTERS
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(names) == 6
    assert "text-1-load-9.png" in names


def test_a_prompt_and_its_answer_are_a_text_where_there_is_none(folder, tmp_path, capsys):
    report = tmp_path / "report.html"
    given = ["--prompt", "w2 w3", "--answer", "w4", "--output", report]
    more = ["--base", folder / "base", "--tokens-per-chapter", "3"]
    code, out, _ = call(capsys, [folder / "memory", *given, *more])
    assert code == 0
    assert out.startswith("w2 w3: 3 tokens;")
    data = data_of(report)
    assert [len(each["load"]) for each in data["readers"]] == [3, 3]
    assert data["effects"]["answer"] == "w4"


def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys):
    report = tmp_path / "report.html"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    text, base = ["--text", "w2"], ["--base", folder / "base"]
    cases = {
        "PATH must be a folder with a saved memory or whole model, got PATH=": [tmp_path, *text],
        "there must be a text, got none; pass --text or --text-file.": [folder / "memory", *base],
        "--prompt and --answer must come together, got prompt='w2', answer=None; pass": [
            folder / "memory",
            "--prompt",
            "w2",
        ],
        f"--text-file must be UTF-8 text, got {tmp_path / 'latin.txt'} (": [
            folder / "memory",
            "--text-file",
            tmp_path / "latin.txt",
        ],
        "--base is for a memory, got base=": [folder / "model", *base, *text],
        "No such file or directory": [folder / "memory", "--text-file", tmp_path / "missing.txt"],
        f"memtx inspect {folder / 'memory'}: ": [
            folder / "memory",
            "--base",
            tmp_path / "nothing",
            *text,
        ],
        "from_pretrained: ": [folder / "memory", *text],
        "a tokenizer must be where the model is, got ": [
            folder / "model",
            "--tokenizer",
            tmp_path,
            *text,
        ],
        "tokens_per_chapter must be an integer of at least 1, got tokens_per_chapter=0;": [
            folder / "memory",
            *base,
            *text,
            "--tokens-per-chapter",
            "0",
        ],
        "bank must be the number of a bank, from 0 to 0, got bank=3;": [
            folder / "model",
            *text,
            "--bank",
            "3",
        ],
    }
    for message, given in cases.items():
        code, out, err = call(capsys, [*given, "--output", report])
        told = err.removeprefix("reading 1 text(s)\n")
        assert (code, out) == (1, ""), given
        assert message in told
        assert told.count("\n") == 1
        assert "Traceback" not in err
    assert not report.exists()


def test_an_incomplete_command_line_exits_with_2(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(["inspect", str(folder / "memory")])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        cli.run(["inspect", "--help"])
    assert caught.value.code == 0
    assert "examples:\n  memtx inspect memory --base BASE" in capsys.readouterr().out
