"""The command `memtx`: what it writes, what it refuses, and that its copies stand alone."""

import subprocess
import sys

import pytest

from memtx import cli
from memtx.cli import factories

PARTS = '"""Small parts.\n\nMore."""\n\nX = 1\n'
STACK = '"""A stack."""\n\nfrom factories.parts import X\n\nY = X + 1\n'
WHOLE = """'All.'

from factories import parts
import factories.stack as stack

print(stack.Y, parts.X)
"""


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    folder.mkdir()
    files = {"__init__": '"""F."""\n', "parts": PARTS, "stack": STACK, "whole": WHOLE}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(factories, "factories_folder", lambda: folder)


def test_list_names_each_factory_with_its_summary(shipped, capsys):
    assert cli.run(["factories", "list"]) == 0
    assert capsys.readouterr().out == "parts  Small parts.\nstack  A stack.\nwhole  All.\n"


def test_copy_without_imports_copies_the_file_as_it_is(shipped, tmp_path, capsys):
    folder = tmp_path / "new" / "mine"
    assert cli.run(["factories", "copy", "parts", str(folder)]) == 0
    assert capsys.readouterr().out == f"wrote {folder / 'parts.py'}\n"
    assert (folder / "parts.py").read_text(encoding="utf-8") == PARTS
    assert [path.name for path in folder.iterdir()] == ["parts.py"]


def test_copy_takes_along_what_a_factory_imports_and_says_so(shipped, tmp_path, capsys):
    assert cli.run(["factories", "copy", "whole", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path / 'whole.py'}",
        f"wrote {tmp_path / 'parts.py'} (imported by whole.py)",
        f"wrote {tmp_path / 'stack.py'} (imported by whole.py)",
    ]
    command = [sys.executable, "-I", "-c", "import sys; sys.path[:0] = ['.']; import whole"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "2 1\n", done.stderr
    text = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.py"))
    assert "factories" not in text


def test_copy_overwrites_nothing_and_then_writes_nothing(shipped, tmp_path, capsys):
    (tmp_path / "parts.py").write_text("mine", encoding="utf-8")
    assert cli.run(["factories", "copy", "stack", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert f"got existing=['{tmp_path / 'parts.py'}']" in captured.err
    assert captured.out == ""
    assert (tmp_path / "parts.py").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "stack.py").exists()


def test_copy_refuses_an_unknown_name(shipped, tmp_path, capsys):
    assert cli.run(["factories", "copy", "nothing", str(tmp_path)]) == 1
    expected = "NAME must be one of parts, stack, whole, got NAME=nothing"
    assert expected in capsys.readouterr().err


def test_copy_refuses_a_file_as_folder(shipped, tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    assert cli.run(["factories", "copy", "parts", str(path)]) == 1
    assert f"FOLDER must be a folder, got FOLDER={path}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["factories"], ["factories", "copy", "parts"], ["x"]])
def test_an_incomplete_command_line_exits_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.run(arguments)
    assert caught.value.code == 2


def test_without_factories_it_says_where_it_looked(tmp_path, monkeypatch, capsys):
    path = tmp_path / "src" / "memtx" / "cli" / "factories.py"
    monkeypatch.setattr(factories, "__file__", str(path))
    assert cli.run(["factories", "list"]) == 1
    assert f"repository={tmp_path / 'factories'}" in capsys.readouterr().err


@pytest.mark.slow
def test_every_factory_of_the_repository_stands_alone(tmp_path):
    for name in factories.factory_names(factories.factories_folder()):
        folder = tmp_path / name
        assert cli.run(["factories", "copy", name, str(folder)]) == 0
        text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
        assert "import factories" not in text
        assert "from factories" not in text
        command = [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = ['.']; import {name}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
