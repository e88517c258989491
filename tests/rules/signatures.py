"""Rules about signatures: no default arguments, no variadic ones."""

import ast
from collections.abc import Iterator

from tests.rules.source import (
    Source,
    Table,
    classes,
    dataclass_decorator,
    dotted,
    scopes,
    unused,
)


def default_arguments(sources: list[Source], table: Table) -> list[str]:
    """No argument and no field has a default, but None where the table lists it."""
    found, used = [], set()
    for source in sources:
        for owner, name, value in [*argument_defaults(source), *field_defaults(source)]:
            is_none = isinstance(value, ast.Constant) and value.value is None
            if not is_none:
                found.append(source.at(value, f"{owner}: `{name}` has a default"))
            elif name not in table.get(source.key(owner), []):
                found.append(source.at(value, f"{owner}: `{name}=None` is not listed"))
            used.add((source.key(owner), name))
    return found + unused(table, used, "None as default of")


def argument_defaults(source: Source) -> Iterator[tuple[str, str, ast.expr]]:
    for owner, node in scopes(source):
        if isinstance(node, ast.ClassDef):
            continue
        positional = [*node.args.posonlyargs, *node.args.args]
        defaults = node.args.defaults
        with_default = positional[len(positional) - len(defaults) :]
        pairs = zip(
            [*with_default, *node.args.kwonlyargs],
            [*defaults, *node.args.kw_defaults],
            strict=True,
        )
        yield from ((owner, each.arg, value) for each, value in pairs if value is not None)


def field_defaults(source: Source) -> Iterator[tuple[str, str, ast.expr]]:
    for owner, node in classes(source):
        is_named_tuple = any(dotted(base).split(".")[-1] == "NamedTuple" for base in node.bases)
        if dataclass_decorator(node) is None and not is_named_tuple:
            continue
        for each in node.body:
            if not isinstance(each, ast.AnnAssign) or each.value is None:
                continue
            name, value = dotted(each.target), each.value
            if dotted(each.annotation).split(".")[-1] == "ClassVar":
                continue
            if isinstance(value, ast.Call) and dotted(value).split(".")[-1] == "field":
                given = {keyword.arg: keyword.value for keyword in value.keywords}
                yield from (
                    (owner, name, given[key])
                    for key in ("default", "default_factory")
                    if key in given
                )
            else:
                yield owner, name, value


def variadic_arguments(sources: list[Source], table: Table) -> list[str]:
    """No *args and no **kwargs, but where the table lists a third party's call passed through."""
    found, used = [], set()
    for source in sources:
        for owner, node in scopes(source):
            if isinstance(node, ast.ClassDef):
                continue
            for each in (node.args.vararg, node.args.kwarg):
                if each is None:
                    continue
                used.add((source.key(owner), each.arg))
                if each.arg not in table.get(source.key(owner), []):
                    found.append(source.at(each, f"{owner}: `*{each.arg}` is not listed"))
    return found + unused(table, used, "variadic argument")
