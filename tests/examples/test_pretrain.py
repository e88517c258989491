"""examples/pretrain.py: trains on a stream, goes on where it was saved, and what it refuses."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from memtx import load
from tests.examples.processes import script, workplace
from tests.examples.scripts import refusal_of
from tests.rules.source import ROOT
from tests.train import tiny

QUICK = "tests.examples.quick_streams:plan"


def write_corpus(folder: Path) -> None:
    texts = [f"{text} So it went on day {day}." for day in range(90) for text in tiny.DOCUMENTS]
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder, and what the script printed."""
    folder = workplace(tmp_path_factory.mktemp("pretrain"))
    write_corpus(folder)
    done = script("pretrain", [QUICK, "--data", "corpus.jsonl", "--output", "out"], folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_learns_and_saves(trained):
    folder, printed = trained
    before, after = re.findall(r"held-out loss ([\d.]+) -> ([\d.]+)", printed)[0]
    assert float(after) < float(before)
    assert "12 steps taken now" in printed
    model = load(folder / "out" / "model").eval()
    assert model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.isfinite().all()
    assert sorted(p.name for p in (folder / "out" / "run").glob("step-*")) == [
        "step-00000008",
        "step-00000012",
    ]


def test_a_run_that_lost_its_end_takes_the_same_steps_again(trained):
    """The last save is gone, as after a kill: the run goes on from the one before."""
    folder, _ = trained
    shutil.copytree(folder / "out", folder / "again")
    shutil.rmtree(folder / "again" / "run" / "step-00000012")
    wanted = load(folder / "out" / "model").state_dict()
    (folder / "again" / "model").rename(folder / "again" / "old")
    arguments = [QUICK, "--data", "corpus.jsonl", "--output", "again"]
    done = script("pretrain", arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "4 steps taken now" in done.stdout
    given = load(folder / "again" / "model").state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in wanted.items())
    lines = (folder / "again" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing:here"], "FACTORY must be module:function of a factory, got 'nothing:here'"),
        (
            ["--data", "absent.jsonl"],
            "--data must be a file of text or a dataset, got data='absent",
        ),
        (["--data", "corpus.jsonl", "--field", "body"], "--field must be a field of the rows"),
        (["--data", "short.jsonl"], "--data must hold more than 32 documents"),
        (["--data", "blank.jsonl"], "--data must be a file of text or a dataset, got data='blank"),
        (["--data", "cut.jsonl"], "--data must be readable to its end, got an error: "),
        (["--data", "numbers.jsonl"], "got field='text', value=[7]; name another"),
        (["--data", "corpus.jsonl", "--split", "test"], "split='test'"),
        (
            ["--tokenizer", "absent"],
            "--tokenizer must be a folder or hub id, got tokenizer='absent'",
        ),
        (
            ["tests.examples.quick_streams:larger", "--data", "corpus.jsonl"],
            "the tokenizer must fit the stack",
        ),
    ],
)
def test_refusals(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    lines = (tmp_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    files = {
        "short": "\n".join(lines[:20]),
        "blank": "",
        "cut": "\n".join([*lines, lines[0][:9]]),
        "numbers": '{"text": [7]}\n' * 40,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    assert expected in refusal_of(monkeypatch, "pretrain", arguments)


def test_a_run_goes_on_with_its_own_tokenizer_alone(trained, tmp_path, monkeypatch):
    """Other data train another tokenizer, by whose numbers the saved weights mean nothing."""
    shutil.copytree(trained[0] / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    texts = [json.dumps({"text": f"Quite other words, {n} of them."}) for n in range(90)]
    (tmp_path / "other.jsonl").write_text("\n".join(texts), encoding="utf-8")
    arguments = [QUICK, "--data", "other.jsonl", "--output", "out"]
    refused = refusal_of(monkeypatch, "pretrain", arguments)
    assert "with the tokenizer it was begun with, got folder='out/tokenizer'" in refused
    wanted = (trained[0] / "out" / "tokenizer" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_bytes() == wanted


def test_rows_without_text_are_left_out():
    has_text = runpy.run_path(str(ROOT / "examples" / "pretrain.py"))["has_text"]
    given = ["words", "", " \n", None, 7]
    assert [has_text({"body": text}, field="body") for text in given] == [1, 0, 0, 0, 1]
