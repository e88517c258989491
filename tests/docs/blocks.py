"""Reads the code blocks of a markdown file: python to run, command lines to look up."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

COMMAND_LANGUAGES = {"bash", "console"}
# Shown, never run. A block of any other language fails, so that no example hides from the tests.
SHOWN_LANGUAGES = {"text", "json", "toml", "yaml", "math", "mermaid"}
FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})(?P<language>\S*)")


class DocumentError(Exception):
    """A markdown file says something that its tests cannot check."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: `line` is the line of its fence, counted from 1."""

    language: str
    line: int
    text: str


def blocks(path: Path) -> list[Block]:
    """Every fenced block of a markdown file, in order."""
    found, lines = [], []
    opening, start = None, 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = FENCE.match(line)
        if opening is None and match:
            opening, start, lines = match, number, []
        elif opening is not None and line.strip() == opening["fence"]:
            text = dedent("\n".join(lines)) + "\n"
            found.append(Block(language=opening["language"], line=start, text=text))
            opening = None
        elif opening is not None:
            lines.append(line)
    if opening is not None:
        raise DocumentError(f"{path.name}:{start}: the block must end, got no closing fence")
    known = {"python"} | COMMAND_LANGUAGES | SHOWN_LANGUAGES
    for block in found:
        if block.language not in known:
            raise DocumentError(
                f"{path.name}:{block.line}: a block's language must be one of {sorted(known)}, "
                f"got language={block.language!r}"
            )
    return found


def run_python(path: Path) -> int:
    """Runs a file's python blocks in order, in one namespace, and returns how many there were."""
    namespace = {"__name__": "__main__"}
    python = [block for block in blocks(path) if block.language == "python"]
    for block in python:
        # The empty lines make a traceback name the line of the markdown file.
        code = compile("\n" * block.line + block.text, str(path), "exec")
        exec(code, namespace)
    return len(python)


def commands(path: Path) -> list[tuple[int, str]]:
    """Every command line with its line number; in console blocks, the lines that follow `$ `."""
    found = []
    for block in blocks(path):
        if block.language not in COMMAND_LANGUAGES:
            continue
        prompt = "$ " if block.language == "console" else ""
        joined, start = "", 0
        for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
            if not joined:
                start = number
                if not line.startswith(prompt) or not line.strip() or line.startswith("#"):
                    continue
            joined += (line if joined else line.removeprefix(prompt)).strip()
            if joined.endswith("\\"):
                joined = joined[:-1].rstrip() + " "
                continue
            found.append((start, joined))
            joined = ""
        if joined:
            raise DocumentError(f"{path.name}:{start}: a command must end, got {joined!r}")
    return found


def uncovered(path: Path, table: dict[str, str]) -> list[str]:
    """The command lines of a file that no pattern of the table matches as a whole."""
    return [
        f"{path.name}:{line}: no test covers `{command}`: list it in tests/docs/commands.py"
        for line, command in commands(path)
        if not any(re.fullmatch(pattern, command) for pattern in table)
    ]
