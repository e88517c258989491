"""docs/tutorial.md, carried out in order: its commands on a tiny base, then its Python.

`make demo` takes minutes and is tested by itself; what it leaves behind is laid out here.
"""

import shlex

import pytest

from memtx import cli, save
from tests.docs.blocks import commands, run_python
from tests.evaluate import models
from tests.rules.source import ROOT
from tests.train import tiny

PAGE = ROOT / "docs" / "tutorial.md"
MEMTX = ".venv/bin/memtx"
# The text is shorter, and so is learning.
QUICK = {"learn": ["--steps", "2", "--length", "16", "--memory-tokens", "12"]}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with what `make demo` leaves, of random numbers, and the beginning of a licence."""
    base = tmp_path / "runs" / "tiny" / "base"
    tiny.base(seed=0).save_pretrained(base)
    tiny.byte_tokenizer(crosses_words=False).save_pretrained(base)
    save(models.adapter(), base.with_name("memory"))
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    (tmp_path / "LICENSE").write_text(licence[:400], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_step(clone, capsys):
    lines = [shlex.split(line) for _, line in commands(PAGE)]
    assert lines[0] == ["make", "demo"]
    for program, command, *rest in lines[1:]:
        assert program == MEMTX
        # What is given last counts.
        code = cli.run([command, *rest, *QUICK.get(command, [])])
        assert code == 0, capsys.readouterr().err
    assert (clone / "runs" / "mine.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    out = capsys.readouterr().out
    assert "loss on the text read afresh" in out
    assert "memory off:" in out
    assert "a sound memory" in out
    assert run_python(PAGE) == 1
