"""Finding a factory by its name, and calling it with what a command line gives."""

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from memtx.cli.command import CommandError
from memtx.cli.factories import factories_folder


def find_factory(name: str, *, command: str) -> Callable[..., Any]:
    """Find the function that `MODULE:FUNCTION` names.

    MODULE is a module that can be imported from here, the path of a Python file, or the name of a
    factory that memtx ships.

    Args:
        name: what the user wrote.
        command: the command that asks, for its messages.

    Raises:
        CommandError: if there is no such module or function, or it cannot be imported.
    """
    module_name, colon, function = name.partition(":")
    if not (module_name and colon and function):
        raise CommandError(
            f"{command}: FACTORY must be MODULE:FUNCTION, got FACTORY={name!r}; "
            f"for example mixture_of_chapters:with_memory."
        )
    module = _module(module_name, command=command)
    found = getattr(module, function, None)
    if not inspect.isfunction(found):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise CommandError(
            f"{command}: FUNCTION must be a function of {module_name}, got FUNCTION={function!r}; "
            f"it has {', '.join(own) or 'none'}."
        )
    return found


def _module(name: str, *, command: str) -> ModuleType:
    """Import a module, a file, or a factory that memtx ships."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if name.endswith(".py"):
            return _file(Path(name))
        if _is_shipped(name.removeprefix("factories.")) and not _is_there(name):
            name = f"factories.{name.removeprefix('factories.')}"
            _offer_shipped()
        return importlib.import_module(name)
    # What a user's file raises when it is run may be anything.
    except Exception as error:
        raise CommandError(
            f"{command}: MODULE must be a module, a .py file or a name of `memtx factories list`, "
            f"got MODULE={name!r} ({type(error).__name__}: {error}); see that it can be imported."
        ) from error


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _is_shipped(name: str) -> bool:
    return (factories_folder() / f"{name}.py").is_file()


def _offer_shipped() -> None:
    """Let `import factories.x` find the shipped files, in this process alone."""
    if _is_there("factories"):
        return
    folder = factories_folder()
    spec = importlib.util.spec_from_file_location(
        "factories", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is not None:
        sys.modules["factories"] = importlib.util.module_from_spec(spec)


def _file(path: Path) -> ModuleType:
    """Import a file; what it imports from beside it is found there."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    sys.path.insert(0, str(path.resolve().parent))
    return importlib.import_module(path.stem)


def settings_of(pairs: Sequence[str], *, command: str) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; a value is JSON where it can be, else text.

    Args:
        pairs: what the user wrote.
        command: the command that asks, for its messages.

    Raises:
        CommandError: if a pair has no name or no `=`.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise CommandError(
                f"{command}: --set must be NAME=VALUE, got --set={pair!r}; "
                f"for example --set vocab_size=32000."
            )
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def check_arguments(
    factory: Callable[..., Any], *, given: Mapping[str, Any], name: str, command: str
) -> None:
    """Refuse what a factory does not take, and what it needs and was not given.

    Args:
        factory: the function.
        given: arguments by name.
        name: how the user called the factory.
        command: the command that asks, for its messages.

    Raises:
        CommandError: if something is missing or unknown.
    """
    taken = inspect.signature(factory).parameters
    needed = [key for key, each in taken.items() if each.default is inspect.Parameter.empty]
    missing = [key for key in needed if key not in given]
    unknown = [key for key in given if key not in taken]
    if missing or unknown:
        ways = ["--set NAME=VALUE"] + (["--base MODEL"] if "base" in missing else [])
        raise CommandError(
            f"{command}: {name} must be given just what it takes, {', '.join(taken) or 'nothing'}, "
            f"got missing={missing}, unknown={unknown}; give values by {' and '.join(ways)}, or "
            f"name a function that makes the model alone."
        )
