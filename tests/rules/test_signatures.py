"""The rules about signatures, on samples that break them and samples that do not."""

import pytest

from tests.rules.signatures import default_arguments, variadic_arguments
from tests.rules.source import Source


def sample(text: str) -> list[Source]:
    return [Source(path="src/memtx/ops/sample.py", text=text)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("def f(a, b=1): ...", "`b` has a default"),
        ("def f(a=1, /, b=2): ...", "`a` has a default"),
        ("def f(*, a, b=()): ...", "`b` has a default"),
        ("async def f(a=1): ...", "`a` has a default"),
        ("class A:\n    def f(self, a=False): ...", "A.f: `a` has a default"),
        ("def f():\n    def g(a=1): ...", "f.g: `a` has a default"),
        ("f = lambda a=1: a", "<lambda>: `a` has a default"),
        ("def f(a=None): ...", "`a=None` is not listed"),
        ("@dataclass\nclass A:\n    a: int = 1", "A: `a` has a default"),
        ("@dataclasses.dataclass(frozen=True)\nclass A:\n    a: int = 1", "`a` has a default"),
        ("@dataclass\nclass A:\n    a: list = field(default_factory=list)", "`a` has a default"),
        ("@dataclass\nclass A:\n    a: int = field(repr=False, default=1)", "`a` has a default"),
        ("class A(NamedTuple):\n    a: int = 1", "A: `a` has a default"),
    ],
)
def test_defaults_are_reported(text, name):
    (found,) = default_arguments(sample(text), {})[:1]
    assert name in found
    assert found.startswith("src/memtx/ops/sample.py:")


@pytest.mark.parametrize(
    "text",
    [
        "def f(a, /, b, *, c): ...",
        "f = lambda a: a",
        "@dataclass\nclass A:\n    a: int\n    b: int = field(repr=False)",
        "@dataclass\nclass A:\n    a: int\n    b: ClassVar[int] = 1",
        "class A:\n    a: int = 1",
        "f(a=1)",
    ],
)
def test_no_defaults_pass(text):
    assert default_arguments(sample(text), {}) == []


def test_listed_none_passes():
    text = "class A:\n    def f(self, a=None, b=None): ..."
    table = {"src/memtx/ops/sample.py:A.f": ["a", "b"]}
    assert default_arguments(sample(text), table) == []


def test_listed_value_other_than_none_is_reported():
    table = {"src/memtx/ops/sample.py:f": ["a"]}
    assert len(default_arguments(sample("def f(a=0): ..."), table)) == 1


def test_listed_argument_that_is_gone_is_reported():
    table = {"src/memtx/ops/sample.py:f": ["a"]}
    (found,) = default_arguments(sample("def f(a): ..."), table)
    assert "listed but not there" in found


@pytest.mark.parametrize(
    "text",
    [
        "def f(*args): ...",
        "def f(**kwargs): ...",
        "f = lambda *a: a",
        "class A:\n    def f(self, **k): ...",
    ],
)
def test_variadic_is_reported(text):
    assert len(variadic_arguments(sample(text), {})) == 1


def test_variadic_passes_where_listed():
    table = {"src/memtx/ops/sample.py:f": ["kwargs"]}
    assert variadic_arguments(sample("def f(*, a, **kwargs): ..."), table) == []
    assert variadic_arguments(sample("def f(*, a): g(*a)"), {}) == []


def test_listed_variadic_that_is_gone_is_reported():
    table = {"src/memtx/ops/sample.py:f": ["kwargs"]}
    assert len(variadic_arguments(sample("def f(): ..."), table)) == 1
