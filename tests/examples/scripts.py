"""Runs an example inside the test's own process: for what ends before any work begins."""

import runpy
import sys

import pytest

from tests.rules.source import ROOT


def run_here(monkeypatch, name: str, arguments: list[str]) -> None:
    """Run a script as `python examples/NAME.py ARGUMENTS` would."""
    path = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")


def refusal_of(monkeypatch, name: str, arguments: list[str]) -> str:
    """Give the one line with which a script refuses its arguments.

    Python prints a SystemExit that holds a text to standard error, and exits with 1.
    """
    with pytest.raises(SystemExit) as caught:
        run_here(monkeypatch, name, arguments)
    message = caught.value.code
    assert isinstance(message, str)
    assert len(message.splitlines()) == 1, message
    return message
