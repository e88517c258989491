"""Rules about sizes: files, functions, and the median file."""

import ast
from statistics import median

from tests.rules.source import Source, scopes

FILE_LINES = 350
FUNCTION_LINES = 60
MEDIAN_LINES = 160


def long_files(source: Source) -> list[str]:
    lines = len(source.text.splitlines())
    return [f"{source.path}:1: {lines} lines, over {FILE_LINES}"] if lines > FILE_LINES else []


def long_functions(source: Source) -> list[str]:
    """No function is longer than the limit, its docstring left out."""
    found = []
    for name, node in scopes(source):
        if isinstance(node, ast.ClassDef | ast.Lambda):
            continue
        lines = span(node)
        if ast.get_docstring(node) is not None:
            lines -= span(node.body[0])
        if lines > FUNCTION_LINES:
            found.append(source.at(node, f"{name}: {lines} lines, over {FUNCTION_LINES}"))
    return found


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def high_median(sources: list[Source]) -> list[str]:
    """The median file, `__init__.py` left out because it only gathers names, stays small."""
    lengths = [
        len(source.text.splitlines())
        for source in sources
        if not source.path.endswith("__init__.py")
    ]
    middle = median(lengths) if lengths else 0
    return (
        [f"src:1: median file of {middle} lines, over {MEDIAN_LINES}"]
        if middle > MEDIAN_LINES
        else []
    )
