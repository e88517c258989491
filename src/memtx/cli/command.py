"""What the commands have in common: how they are added, and how they tell a user's mistake."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Generic only for type checkers.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


class CommandError(Exception):
    """A user's mistake: told in one line, without a traceback."""


def flat(error: Exception) -> str:
    """Write an error's message in one line.

    Args:
        error: the error.
    """
    return " ".join(str(error).split())


@contextmanager
def in_one_line(command: str) -> Iterator[None]:
    """Tell in one line what the library raises inside a `with` block.

    Args:
        command: the command that runs it.
    """
    try:
        yield
    except IndexError as error:
        raise CommandError(
            f"{command}: the tokenizer must be the model's own, got a token that the model does "
            f"not have ({flat(error)}); name the right one by --tokenizer."
        ) from error
    except (ValueError, ArithmeticError, ImportError, RuntimeError) as error:
        raise CommandError(f"{command}: {flat(error)}") from error


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
