"""Every rule, applied to every Python file of the repository that it is about."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules import bans, constructors, docstrings, imports, signatures, sizes, tables
from tests.rules.source import ROOT, repository_sources

SOURCES = repository_sources()
SRC = [source for source in SOURCES if source.folder == "src"]
SHIPPED = [source for source in SOURCES if source.folder in ("src", "factories", "examples")]

# Rules that look at one file at a time, and the files that they look at.
FILE_RULES = [
    (imports.imports_point_down, SOURCES),
    (sizes.long_files, SOURCES),
    (sizes.long_functions, SOURCES),
    (constructors.kept_parameters, SRC),
    (docstrings.missing_docstrings, SRC),
    (docstrings.missing_sections, SRC),
    (bans.asserts, SHIPPED),
    (bans.pickles, SRC),
]

# Rules with a table of what they allow.
TABLE_RULES = [
    (signatures.default_arguments, SOURCES, tables.ENTRY_POINTS),
    (signatures.variadic_arguments, SOURCES, tables.PASS_THROUGH),
    (constructors.keyword_only, SRC, tables.POSITIONAL),
    (bans.inheritance, SRC, tables.INHERITANCE),
    (imports.heavy_imports, SRC, tables.HEAVY_IMPORTS),
]


def check(violations: list[str]) -> None:
    """Fails with the violations alone: a traceback would say nothing more."""
    if violations:
        pytest.fail("\n".join(violations), pytrace=False)


def name_of(value) -> str:
    """A rule's name, and nothing for the files and tables beside it."""
    return getattr(value, "__name__", "all")


@pytest.mark.parametrize(("rule", "sources"), FILE_RULES, ids=name_of)
def test_files(rule, sources):
    found = [violation for source in sources for violation in rule(source)]
    check(found)


@pytest.mark.parametrize(("rule", "sources", "table"), TABLE_RULES, ids=name_of)
def test_files_and_table(rule, sources, table):
    found = rule(sources, table)
    check(found)


def test_median_of_src():
    found = sizes.high_median(SRC)
    check(found)


def project_files() -> list[Path]:
    """The files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs a git checkout: {done.stderr.strip()}")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_machine():
    found = []
    for path in project_files():
        name = path.relative_to(ROOT).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += bans.outside_names(name, text, tables.OUTSIDE.get(name, []))
    check(found)


def test_import_leaves_heavy_libraries_out():
    heavy = sorted(imports.HEAVY)
    code = f"import sys, memtx; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
