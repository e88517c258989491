"""Rules about what may not be written at all: asserts, inheritance, pickle, names of machines."""

import ast
import re

from tests.rules.source import Source, Table, classes, dotted, unused

BASES = {"Module", "Protocol", "Enum", "StrEnum", "IntEnum", "NamedTuple", "TypedDict"}
ERRORS = ("Error", "Exception", "Warning")
PICKLES = {"pickle", "cloudpickle", "dill"}
# Written so that this file does not contain what it looks for.
OUTSIDE_NAMES = {
    "a folder of a machine": r"(?<![\w.])/(?:work|root|home|Users)/",
    "a folder outside of the repository": r"\.\./[s]hared",
    "a private library": r"\.[l]ibrary\b",
    "a private host": r"https?://(?:10|127|169\.254|172\.(?:1[6-9]|2\d|3[01])|192\.168)\.[\d.]+",
    "a package registry": r"(?:[i]ndex-url|[f]ind-links|[I]NDEX_URL|[F]IND_LINKS)",
}


def asserts(source: Source) -> list[str]:
    """A user's mistake gets an error that python -O keeps."""
    nodes = [node for node in ast.walk(source.tree) if isinstance(node, ast.Assert)]
    return [source.at(node, "assert: raise an error that says what to do") for node in nodes]


def inheritance(sources: list[Source], table: Table) -> list[str]:
    """Classes inherit from nn.Module, protocols, enums, named tuples and errors only."""
    found, used = [], set()
    for source in sources:
        for name, node in classes(source):
            bases = [dotted(base) for base in node.bases]
            if "Protocol" in bases:
                continue  # a protocol may extend a protocol, and Python refuses anything else
            for base in bases:
                last = base.split(".")[-1]
                if last in BASES or last.endswith(ERRORS):
                    continue
                used.add((source.key(name), base))
                if base not in table.get(source.key(name), []):
                    found.append(
                        source.at(node, f"{name}: inherits from `{base}`, which is not listed")
                    )
    return found + unused(table, used, "base class")


def pickles(source: Source) -> list[str]:
    """Loading a file never runs code from it."""
    found = []
    for node in ast.walk(source.tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
            if node.module == "torch" and any(alias.name == "load" for alias in node.names):
                found.append(source.at(node, "imports torch.load"))
        elif isinstance(node, ast.Attribute) and dotted(node) == "torch.load":
            found.append(source.at(node, "uses torch.load"))
        found += [source.at(node, f"imports `{name}`") for name in names if name in PICKLES]
    return found


def outside_names(path: str, text: str, allowed: list[str]) -> list[str]:
    """No file names what exists on one machine only."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in OUTSIDE_NAMES.items():
            hit = re.search(pattern, line)
            if hit and what not in allowed:
                found.append(f"{path}:{number}: names {what}: {hit.group()}")
    return found
