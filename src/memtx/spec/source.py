"""From a model to the Python that makes it."""

import re

from torch import nn

from memtx.expression import Node, arguments, is_component, shared_parts, tree

ROWS_COMMENT = "# torch.zeros stands for rows that were given: a saved memory holds their values."


def to_source(model: nn.Module) -> str:
    """Give formatted Python that, when run, leaves an equal fresh model in `model`.

    Shared parts are assigned first, under the names they were passed as. The base of an adapter
    is the name `base`, which the caller must have defined. Rows that were given to `FromRows` stand
    as zeros of their shape.

    Args:
        model: a model or part composed of memtx classes.
    """
    names = shared_parts(model)
    order = _in_order_of_need(model, names=names)
    statements: list[str] = []
    classes: set[str] = set()
    defined: set[int] = set()
    for part in [*order, model]:
        name = names.get(id(part), "model")
        alone = {key: value for key, value in names.items() if key != id(part)}
        root = tree(part, names=alone, defined=defined, outside="base")
        classes |= set(re.findall(r"\b([A-Z]\w*)[(.]", root.flat()))
        statements.append("\n".join(root.lines(before=f"{name} = ", indent=0, after="")))
        defined.add(id(part))
    body = "\n".join(statements)
    head = _imports(sorted(classes, key=_isort_key))
    if "=torch.zeros(" in body:
        return f"import torch\n\n{head}\n\n{ROWS_COMMENT}\n{body}\n"
    return f"{head}\n\n{body}\n"


def _in_order_of_need(model: nn.Module, *, names: dict[int, str]) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}

    def visit(value: object) -> None:
        if isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif is_component(value) and id(value) not in found:
            for argument in arguments(value).values():
                visit(argument)
            if isinstance(value, nn.Module) and id(value) in names:
                found[id(value)] = value

    visit(model)
    return [part for part in found.values() if part is not model]


def _isort_key(name: str) -> tuple[bool, str]:
    """Order names as ruff's import sorting does: constants first, then classes, case ignored."""
    return (not name.isupper(), name.lower())


def _imports(classes: list[str]) -> str:
    children = [("", Node(opening=name, children=None, closing="")) for name in classes]
    line = "from memtx import " + ", ".join(classes)
    if len(line) <= 88:
        return line
    root = Node(opening="(", children=children, closing=")")
    return "\n".join(root.lines(before="from memtx import ", indent=0, after=""))
