"""The `memtx` command: one file for each of its commands."""

import argparse
import os
import sys
from collections.abc import Sequence

from memtx.cli import ask, evaluate, factories, inspect, learn, plan, train, verify
from memtx.cli.command import CommandError

__all__ = ["CommandError", "main", "parser", "run"]

# A command's file adds its parser, and the function that runs it as the parser's `call`.
COMMANDS = [plan, train, learn, ask, evaluate, inspect, factories, verify]


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="memtx",
        description="A learned memory for transformers.",
        epilog="exit codes: 0 done, 1 a mistake or trouble found, 2 a wrong command line",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code: 0, or 1 after a mistake or trouble found."""
    asked = parser().parse_args(arguments)
    try:
        code = int(asked.call(asked))
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has gone, as `head` does; nothing more can be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CommandError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(_trouble(error, command=f"memtx {asked.command}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("memtx: interrupted", file=sys.stderr)
        return 130
    return code


def _trouble(error: OSError, *, command: str) -> str:
    """Tell what a file or a connection refused; what the library raises says more already."""
    told = " ".join((error.strerror or str(error)).split())
    told += "" if error.filename is None else f": {error.filename}; check the path."
    return told if told.startswith(command) else f"{command}: {told}"


def main() -> None:
    """The entry point of the installed command `memtx`."""
    sys.exit(run(sys.argv[1:]))
