"""The examples in the docstrings of memtx and of the factories, one test per file."""

import doctest
import importlib

import pytest

from tests.rules.source import ROOT

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# Modules that no other imports, and the library of an extra without which they do not load.
NEEDED = {"memtx.evaluate.harness": "lm_eval"}


def modules() -> list[str]:
    """The names of all modules, found as files: finding them imports nothing."""
    paths = [
        path.relative_to(base).with_suffix("")
        for base, folder in ((ROOT / "src", "memtx"), (ROOT, "factories"))
        for path in sorted((base / folder).rglob("*.py"))
    ]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("name", modules())
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module, library in NEEDED.items():
        if name == module or name.startswith(f"{module}."):
            pytest.importorskip(library, reason=f"{module} needs {library}")
    # The report on failures goes to standard output, which pytest shows.
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.failed == 0
