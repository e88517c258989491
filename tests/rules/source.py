"""A Python file as the rules see it, and the few questions that every rule asks of it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "factories", "examples", "benchmarks", "tests")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = Function | ast.Lambda | ast.ClassDef
# What a rule allows by name: `path:Class.method` to the names it allows there.
Table = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file's path below the repository's root, with forward slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        return self.path.split("/")[0]

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {message}"

    def key(self, name: str) -> str:
        return f"{self.path}:{name}"


def repository_sources() -> list[Source]:
    """Every Python file of the repository."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return [
        Source(path=path.relative_to(ROOT).as_posix(), text=path.read_text(encoding="utf-8"))
        for path in paths
    ]


def scopes(source: Source) -> Iterator[tuple[str, Scope]]:
    """Every class, function and lambda of a file with its qualified name, outermost first."""
    return inner_scopes(source.tree, "")


def inner_scopes(node: ast.AST, prefix: str) -> Iterator[tuple[str, Scope]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Scope):
            name = f"{prefix}{getattr(child, 'name', '<lambda>')}"
            yield name, child
            yield from inner_scopes(child, f"{name}.")
        else:
            yield from inner_scopes(child, prefix)


def classes(source: Source) -> Iterator[tuple[str, ast.ClassDef]]:
    return ((name, node) for name, node in scopes(source) if isinstance(node, ast.ClassDef))


def method(node: ast.ClassDef, name: str) -> Function | None:
    """The method of that name which the class itself defines, if it does."""
    found = [each for each in node.body if isinstance(each, Function) and each.name == name]
    return found[0] if found else None


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name, an attribute, or of what is called or subscripted there."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dataclass_decorator(node: ast.ClassDef) -> ast.expr | None:
    found = [each for each in node.decorator_list if dotted(each).split(".")[-1] == "dataclass"]
    return found[0] if found else None


def unused(table: Table, used: set[tuple[str, str]], what: str) -> list[str]:
    """One violation per entry of a table that allows what no file does any more."""
    listed = [(key, name) for key, names in table.items() for name in names]
    return [
        f"{key}: {what} `{name}` is listed but not there"
        for key, name in listed
        if (key, name) not in used
    ]
