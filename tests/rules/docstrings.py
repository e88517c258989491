"""Rules about docstrings: all public names have one, classes with sections."""

import ast
import re

from tests.rules.source import Function, Source, classes, dataclass_decorator, dotted, method


def missing_docstrings(source: Source) -> list[str]:
    """Public classes and functions, and public methods of public classes, say what they do."""
    return missing_in(source, source.tree.body, "")


def missing_in(source: Source, body: list[ast.stmt], prefix: str) -> list[str]:
    found = []
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        is_overload = any(dotted(each).endswith("overload") for each in node.decorator_list)
        if ast.get_docstring(node) is None and not is_overload:
            found.append(source.at(node, f"{prefix}{node.name}: has no docstring"))
        if isinstance(node, ast.ClassDef):
            found += missing_in(source, node.body, f"{prefix}{node.name}.")
    return found


def missing_sections(source: Source) -> list[str]:
    """A public class that can be constructed documents its arguments, source, errors and use."""
    found = []
    for name, node in classes(source):
        constructs = method(node, "__init__") is not None or dataclass_decorator(node) is not None
        is_public = not any(part.startswith("_") for part in name.split("."))
        if constructs and is_public:
            text = ast.get_docstring(node) or ""
            absent = [each for each in needed(node) if not has_section(text, each)]
            found += [source.at(node, f"{name}: docstring lacks `{each}:`") for each in absent]
            if has_section(text, "Example") and ">>>" not in text:
                found.append(source.at(node, f"{name}: the example has no `>>>` line"))
    return found


def needed(node: ast.ClassDef) -> list[str]:
    sections = ["Args", "Source", "Example"]
    if method(node, "forward") is not None:
        sections.append("Shapes")
    if any(map(refuses, (method(node, "__init__"), method(node, "__post_init__")))):
        sections.append("Raises")
    return sections


def refuses(function: Function | None) -> bool:
    """Whether a constructor raises or calls one of the `require` checks."""
    inside = ast.walk(function) if function is not None else []
    return any(
        isinstance(each, ast.Raise)
        or (isinstance(each, ast.Call) and dotted(each).split(".")[-1].startswith("require"))
        for each in inside
    )


def has_section(text: str, section: str) -> bool:
    return re.search(rf"(?m)^\s*{section}:", text) is not None
