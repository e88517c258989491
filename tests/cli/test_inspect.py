"""`memtx inspect`: what it writes, what it says, and what it refuses."""

import json

import pytest

from memtx import SinkMemoryBank, Site, StandardMemoryBank, TokenRouting, Zeros, cli, save
from memtx.cli.inspect import chapter_size
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


def test_empty_tokens_are_a_chapter_of_their_own():
    def bank(count):
        return StandardMemoryBank(num_memory_tokens=count, dim=2, init=Zeros())

    def behind(sinks, count):
        return SinkMemoryBank(num_sinks=sinks, stored=bank(count))

    assert chapter_size([behind(64, 512)]) == 64
    assert chapter_size([behind(1, 511)]) == 32  # 512 chapters would be too many to look at
    assert chapter_size([bank(8), bank(40)]) == 3
    assert chapter_size([]) == 1


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
        f"--text-file must be UTF-8 text, got --text-file={tmp_path / 'latin.txt'} (": [
            folder / "memory",
            "--text-file",
            tmp_path / "latin.txt",
        ],
        "--base is for a memory, got base=": [folder / "model", *base, *text],
        "memtx inspect: --base must be a folder of a model and its tokenizer, or an id": [
            folder / "memory",
            "--base",
            tmp_path / "nothing",
            *text,
        ],
        "memtx inspect: --base must be given where a memory's base did not come from the hub, got "
        f"PATH={folder / 'memory'}, which was taught to a LlamaForCausalLM; pass --base FOLDER.": [
            folder / "memory",
            *text,
        ],
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


def test_what_a_file_system_refuses_is_told_by_the_command(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("x")
    memory = [folder / "memory", "--base", folder / "base"]
    missing = tmp_path / "missing.txt"
    code, _, err = call(capsys, [*memory, "--text-file", missing, "--output", tmp_path / "a.html"])
    assert (code, err) == (
        1,
        "memtx inspect: --text-file must be a file that can be read, got --text-file="
        f"{missing} (No such file or directory); check the path.\n",
    )
    given = [*memory, "--text", "w1 w2"]
    code, _, err = call(capsys, [*given, "--output", tmp_path / "file" / "report.html"])
    told = err.splitlines()[-1]
    assert code == 1
    assert told.startswith("memtx inspect: write_report: the place to write must be a folder that")
    told_by = FileNotFoundError(2, "No such file or directory", "some.json")
    monkeypatch.setattr("memtx.cli.inspect.loaded", _raising(told_by))
    code, _, err = call(capsys, [*given, "--output", tmp_path / "report.html"])
    assert err == "memtx inspect: No such file or directory: some.json; check the path.\n"


def _raising(error):
    def call(path, base, tokenizer, owner):
        raise error

    return call
