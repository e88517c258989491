"""Rules about imports: only downwards, and heavy libraries only where they are listed."""

import ast
from collections.abc import Iterator

from tests.rules.source import Source, Table, unused

# A unit is a package or file of src/memtx, or a top-level folder. Lowest row first.
LAYERS = [
    {"checks", "expression", "modes"},
    {"places"},
    {"context"},
    {"interfaces"},
    {"projections"},
    {"ops", "initialize"},
    {"transformer", "memory", "tensor", "data"},
    {"blocks", "losses"},
    {"models", "adapters"},
    {"spec", "generate"},
    {"evaluate", "usage", "huggingface"},
    {"train"},
    {"cli"},
    {"__main__"},
    {"factories"},
    {"examples"},
    {"benchmarks"},
    {"tests"},
]
ROWS = {unit: row for row, units in enumerate(LAYERS) for unit in units}
OUTSIDE = {"factories", "examples", "benchmarks", "tests"}
HEAVY = {
    "transformers",
    "datasets",
    "peft",
    "bitsandbytes",
    "matplotlib",
    "rich",
    "tensorboard",
    "wandb",
    "lm_eval",
}


def imports_point_down(source: Source) -> list[str]:
    """A file imports from its own unit and from units in lower rows only."""
    parts = source.path.removesuffix(".py").removesuffix("/__init__").split("/")
    if parts == ["src", "memtx"]:
        return []  # the public face gathers everything
    inside = parts[:2] == ["src", "memtx"]
    unit = parts[2] if inside else parts[0]
    if unit not in ROWS:
        return [source.at(source.tree, f"unknown unit `{unit}`: give it a row")]
    found = []
    for node, module in imported_modules(source):
        target = module.split(".")
        if target[0] not in ({"memtx"} if inside else set()) | OUTSIDE:
            continue  # a third party, or memtx from above: all of that is free
        if target == ["memtx"]:
            found.append(source.at(node, "imports from `memtx` itself: name the submodule"))
            continue
        other = target[1] if target[0] == "memtx" else target[0]
        if other not in ROWS:
            found.append(source.at(node, f"imports unknown unit `{other}`: give it a row"))
        elif other != unit and ROWS[other] >= ROWS[unit]:
            found.append(
                source.at(
                    node, f"`{unit}` (row {ROWS[unit]}) imports `{other}` (row {ROWS[other]})"
                )
            )
    return found


def imported_modules(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with the absolute name of the module that it names."""
    package = source.path.removeprefix("src/").split("/")[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if node.level and module == "memtx":
                # `from .. import ops` names the submodule after `import`
                yield from ((node, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node, module


def heavy_imports(sources: list[Source], table: Table) -> list[str]:
    """Heavy libraries are imported when a module of src loads only where the table lists it."""
    found, used = [], set()
    for source in sources:
        for node in loading_imports(source.tree):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            for name in {each.split(".")[0] for each in names} & HEAVY:
                used.add((source.path, name))
                if name not in table.get(source.path, []):
                    found.append(source.at(node, f"imports `{name}` when it loads: not listed"))
    return found + unused(table, used, "heavy import")


def loading_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a module loads: not those in functions or for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import) or (isinstance(child, ast.ImportFrom) and not child.level):
            yield child
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for each in child.orelse:
                yield from loading_imports(each)
        else:
            yield from loading_imports(child)
