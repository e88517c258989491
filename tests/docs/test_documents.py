"""README.md and docs: every python block runs, every command line is covered by a test."""

import re

import pytest

from tests.docs.blocks import commands, run_python, uncovered
from tests.docs.commands import COMMANDS
from tests.rules.source import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The tutorial's Python runs on what its commands made: tests/docs/test_tutorial.py.
ALONE = [path for path in DOCUMENTS if path.name != "tutorial.md"]


def name_of(path) -> str:
    return path.relative_to(ROOT).as_posix()


# What torch.compile imports warns of torch's own past, once in a process.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("path", ALONE, ids=name_of)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_are_covered(path):
    found = uncovered(path, COMMANDS)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_table_names_shown_commands_and_existing_tests():
    shown = [command for path in DOCUMENTS for _, command in commands(path)]
    for pattern, test in COMMANDS.items():
        assert any(re.fullmatch(pattern, command) for command in shown), pattern
        assert (ROOT / test).is_file(), test
