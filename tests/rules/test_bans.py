"""The rules about what may not be written, on samples that write it and samples that do not."""

import pytest

from tests.rules import bans
from tests.rules.source import Source


def sample(text: str) -> Source:
    return Source(path="src/memtx/ops/sample.py", text=text)


def test_assert():
    assert len(bans.asserts(sample("def f(a):\n    assert a"))) == 1
    assert bans.asserts(sample("if not a:\n    raise ValueError")) == []


@pytest.mark.parametrize("base", ["Standard", "bank.Standard", "nn.Linear", "ABC", "Generic[T]"])
def test_inheritance_is_reported(base):
    (found,) = bans.inheritance([sample(f"class A({base}): ...")], {})
    assert "inherits from" in found


@pytest.mark.parametrize(
    "base",
    [
        "",
        "()",
        "(nn.Module)",
        "(Protocol[T])",
        "(Sublayer, Protocol)",
        "(StrEnum)",
        "(NamedTuple)",
        "(Exception)",
        "(ValueError)",
    ],
)
def test_allowed_base_passes(base):
    assert bans.inheritance([sample(f"class A{base}: ...")], {}) == []


def test_listed_base_passes_and_is_reported_when_gone():
    table = {"src/memtx/ops/sample.py:A": ["autograd.Function"]}
    assert bans.inheritance([sample("class A(autograd.Function): ...")], table) == []
    assert len(bans.inheritance([sample("class A: ...")], table)) == 1


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "from torch import load", "x = torch.load(path)"],
)
def test_pickle_is_reported(text):
    assert len(bans.pickles(sample(text))) == 1


def test_other_loading_passes():
    assert (
        bans.pickles(sample("import json\nfrom safetensors.torch import load_file\nload(x)")) == []
    )


# Joined here, so that this file itself names none of them.
@pytest.mark.parametrize(
    "parts",
    [
        ("", "work", "main"),
        ("'", "root", "x"),
        ("..", "shared", "data"),
        ("a", "." + "library", "b"),
        ("http:", "", "10.0.0.1", "simple"),
        ("pip install --find-", "links"),
    ],
)
def test_machine_is_reported(parts):
    text = "fine\n" + ("".join(parts) if "links" in parts else "/".join(parts))
    (found,) = bans.outside_names("README.md", text, [])
    assert found.startswith("README.md:2: ")


def test_machine_passes_where_listed():
    text = "/".join(("..", "shared", "data"))
    assert bans.outside_names("a", text, ["a folder outside of the repository"]) == []


def test_other_names_pass():
    text = "../docs/a.md src/works/x https://arxiv.org/abs/1 http://localhost:8000 workpiece"
    assert bans.outside_names("a", text, []) == []
