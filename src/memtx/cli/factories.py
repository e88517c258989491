"""`memtx factories`: lists ready stacks and copies them into a folder of the user's."""

import argparse
import ast
import re
from pathlib import Path

from memtx.cli.command import CommandError, Commands, add_command


def factories_folder() -> Path:
    """The folder of factory files: inside an installed wheel, or the repository's when editable."""
    installed = Path(__file__).parents[1] / "_factories"
    repository = Path(__file__).parents[3] / "factories"
    for folder in (installed, repository):
        if folder.is_dir():
            return folder
    raise CommandError(
        f"memtx factories: the factory files must lie in the installation, got none at "
        f"installed={installed} nor repository={repository}; install memtx again."
    )


def factory_names(folder: Path) -> list[str]:
    """The names of all factories in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def summary(path: Path) -> str:
    """The first line of a factory file's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def imported_factories(source: str) -> list[str]:
    """The names of the other factories that a factory's source imports, sorted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "factories":
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("factories."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            dotted = [alias.name.split(".") for alias in node.names]
            names.update(parts[1] for parts in dotted if parts[0] == "factories" and parts[1:])
    return sorted(names)


def stand_alone(source: str) -> str:
    """The source with imports of `factories.x` turned into imports of the file `x` beside it.

    Copies lie in a folder of the user's choice, which is no package named `factories`.
    """
    source = re.sub(r"(?m)^(\s*)from factories\.(\w+) import ", r"\1from \2 import ", source)
    source = re.sub(r"(?m)^(\s*)import factories\.(\w+) as ", r"\1import \2 as ", source)
    return re.sub(r"(?m)^(\s*)from factories import ", r"\1import ", source)


def copy_factory(name: str, folder: Path) -> list[str]:
    """Copies a factory and every factory that it imports into `folder`.

    Returns:
        One line per file written, saying which file asked for it.
    """
    origin = factories_folder()
    known = factory_names(origin)
    if name not in known:
        raise CommandError(
            f"memtx factories copy: NAME must be one of {', '.join(known)}, got NAME={name}; "
            f"see `memtx factories list`."
        )
    reasons = {name: ""}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        for other in imported_factories((origin / f"{current}.py").read_text(encoding="utf-8")):
            if other not in reasons:
                reasons[other] = f" (imported by {current}.py)"
                waiting.append(other)
    write_new(folder, {f"{each}.py": origin / f"{each}.py" for each in reasons})
    return [f"wrote {folder / each}.py{reason}" for each, reason in reasons.items()]


def write_new(folder: Path, files: dict[str, Path]) -> None:
    """Writes stand-alone copies of `files` into `folder`, all of them or, if one exists, none."""
    if folder.exists() and not folder.is_dir():
        raise CommandError(
            f"memtx factories copy: FOLDER must be a folder, got FOLDER={folder}, a file; "
            f"name another."
        )
    existing = [str(folder / name) for name in files if (folder / name).exists()]
    if existing:
        raise CommandError(
            f"memtx factories copy: no file may be overwritten, got existing={existing}; "
            f"move them away or name another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, origin in files.items():
        text = stand_alone(origin.read_text(encoding="utf-8"))
        (folder / name).write_text(text, encoding="utf-8")


def add(commands: Commands) -> None:
    """Adds `memtx factories` and its two actions to the command line."""
    factories = add_command(
        commands,
        name="factories",
        summary="list ready stacks, every value spelled out, or copy one",
        examples=["memtx factories list", "memtx factories copy qwen_adapter my_factories"],
    )
    actions = factories.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = add_command(
        actions,
        name="list",
        summary="list the factories",
        examples=["memtx factories list"],
    )
    listed.set_defaults(call=list_factories)
    copy = add_command(
        actions,
        name="copy",
        summary="copy a factory, and those it imports, into a folder",
        examples=["memtx factories copy qwen_adapter my_factories"],
    )
    copy.add_argument("name", metavar="NAME", help="a factory of `memtx factories list`")
    copy.add_argument("folder", metavar="FOLDER", type=Path, help="where the copies go")
    copy.set_defaults(call=copy_factories)


def list_factories(_asked: argparse.Namespace) -> int:
    """Prints each factory with its summary; returns 0."""
    folder = factories_folder()
    names = factory_names(folder)
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:{width}}  {summary(folder / f'{name}.py')}".rstrip())
    return 0


def copy_factories(asked: argparse.Namespace) -> int:
    """Copies what was asked for and prints what was written; returns 0."""
    print("\n".join(copy_factory(asked.name, asked.folder)))
    return 0
