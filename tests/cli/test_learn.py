"""`memtx learn`: what it saves, what it says, and what it refuses."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from memtx import cli, load_adapter
from tests.adapters.bases import llama
from tests.usage.words import tokenizer

TEXT = " ".join(f"w{2 + (7 * number) % 40}" for number in range(120))
BACKGROUND = "\n".join(" ".join(f"w{2 + (3 * n + k) % 50}" for n in range(30)) for k in range(12))
QUICK = ["--steps", "3", "--length", "16", "--memory-tokens", "12", "--samples", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base with a tokenizer, a text to learn and another to stay true to."""
    folder = tmp_path_factory.mktemp("learn")
    llama().save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "background.txt").write_text(BACKGROUND, encoding="utf-8")
    return folder


def call(capsys, folder, output, more):
    given = ["--base", folder / "base", "--text", folder / "text.txt", "--output", output]
    code = cli.run(["learn", *map(str, [*given, *QUICK, *more])])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_text_becomes_a_memory_that_can_be_loaded(folder, tmp_path, capsys):
    output = tmp_path / "memory"
    more = ["--background", folder / "background.txt", "--json"]
    code, out, err = call(capsys, folder, output, more)
    assert code == 0, err
    told = json.loads(out)
    before, after = told["before"], told["after"]
    assert told["text_loss_fall"] == pytest.approx(1 - after["text_loss"] / before["text_loss"])
    assert told["background_loss_rise"] == pytest.approx(
        after["background_loss"] / before["background_loss"] - 1
    )
    assert after["text_loss"] < before["text_loss"]
    assert len(after["passages"]) == 3
    assert {each["num_tokens"] for each in after["passages"]} == {16}
    assert "learning" in err
    adapter = load_adapter(output, AutoModelForCausalLM.from_pretrained(folder / "base"))
    assert [bank.num_memory_tokens for bank in adapter.banks] == [64 + 12]
    ids = torch.tensor([tokenizer()(TEXT)["input_ids"][:16]])
    with torch.no_grad():
        on = adapter(input_ids=ids).logits
        with adapter.disabled():
            assert not torch.equal(adapter(input_ids=ids).logits, on)


def test_without_a_background_the_base_makes_up_its_own(folder, tmp_path, capsys):
    code, out, err = call(capsys, folder, tmp_path / "memory", [])
    assert code == 0, err
    assert "the base makes up 256 texts" in err
    assert "texts of the base's own" in out
    assert re.search(r"loss on the text read afresh +\d\.\d{3} +\d\.\d{3} +-\d+\.\d%", out)
    assert f"saved {tmp_path / 'memory'} after" in out
    assert max(map(len, out.splitlines())) < 110


def test_the_same_seed_gives_the_same_memory(folder, tmp_path, capsys):
    reports = []
    for name in ("one", "other"):
        more = ["--background", folder / "background.txt", "--json"]
        reports.append(json.loads(call(capsys, folder, tmp_path / name, more)[1]))
    assert reports[0]["after"] == reports[1]["after"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got --steps=0"),
        (["--length", "8"], "--length must be at least 16, got --length=8"),
        (["--memory-tokens", "0"], "--memory-tokens must be at least 1"),
        (["--samples", "-1"], "--samples must be at least 0, got --samples=-1"),
        (["--learning-rate", "0"], "got samples=1, learning_rate=0.0"),
        (["--locality-weight", "nan"], "weight=nan"),
        (["--separator", "("], "--separator must be a regular expression, got --separator='('"),
        (["--base", "no/such/base"], "--base must be a folder of a model and its tokenizer"),
        (["--base", "DAMAGED"], "DAMAGED (Error while deserializing header"),
        (["--text", "no-such-text.txt"], "no-such-text.txt"),
        (["--length", "300"], "the background must fill at least 8 rows of 300 tokens, got rows=1"),
    ],
)
def test_mistakes_are_told_in_one_line(more, message, folder, tmp_path, capsys):
    damaged = folder / "DAMAGED"
    if "DAMAGED" in more and not damaged.exists():
        shutil.copytree(folder / "base", damaged)
        (damaged / "model.safetensors").write_bytes(b"not what it was")
    more = [str(folder / each) if each == "DAMAGED" else each for each in more]
    given = ["--background", folder / "background.txt", *more]
    code, out, err = call(capsys, folder, tmp_path / "memory", given)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("base", "path must be free, empty or hold a saved memory and nothing else"),
        ("text.txt", "path must be a folder or free"),
        ("text.txt/memory", "the place to write must be a folder that can be written"),
    ],
)
def test_where_nothing_can_be_saved_nothing_is_learned(place, message, folder, capsys):
    code, out, err = call(capsys, folder, folder / place, [])
    assert (code, out) == (1, "")
    assert message in err
    assert "loading" not in err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "must hold text"), (b" \n ", "must hold text"), (b"\xff\xfe\xfa", "must be UTF-8 text")],
)
def test_texts_that_cannot_be_read(content, message, folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(content)
    for flag in ("--text", "--background"):
        code, _, err = call(capsys, folder, tmp_path / "memory", [flag, tmp_path / "text.txt"])
        assert code == 1
        assert f"memtx learn: {flag} {message}" in err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(["learn", "--help"])
    assert end.value.code == 0
    assert "examples:\n  memtx learn --base BASE --text chapter.txt" in capsys.readouterr().out


def test_a_scene_for_the_small_llama(data_folder, tmp_path, capsys):
    """A few steps; the whole recipe takes minutes (benchmarks/evidence/document.py)."""
    lines = (data_folder / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "scene.txt").write_text("\n".join(lines[:40]), encoding="utf-8")
    stories = (data_folder / "text" / "tinystories.txt").read_text(encoding="utf-8")
    (tmp_path / "stories.txt").write_text(stories[:40_000], encoding="utf-8")
    given = ["--base", data_folder / "models" / "stories260K", "--output", tmp_path / "memory"]
    given += ["--text", tmp_path / "scene.txt", "--background", tmp_path / "stories.txt"]
    code = cli.run(
        ["learn", *map(str, given), "--steps", "12", "--length", "64", "--samples", "0", "--json"]
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["text_loss_fall"] > 0.15
    assert told["background_loss_rise"] < 0.03
