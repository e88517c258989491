"""What the commands have in common: how they are added, and how they tell a user's mistake."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Generic only for type checkers.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


class CommandError(Exception):
    """A user's mistake: told in one line, without a traceback."""


def add_command(
    commands: Commands, *, name: str, summary: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """Add one command, whose help ends with examples.

    What runs it is set on the parser given back, by `set_defaults(call=function)`: a function of
    the parsed arguments that gives the exit code.

    Args:
        commands: where to add it.
        name: how it is called.
        summary: what it does, in half a line without a full stop.
        examples: whole command lines.
    """
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join(["examples:", *(f"  {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
