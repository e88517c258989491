"""`memtx verify`: checks what was saved, without running it."""

import argparse
import json
import sys
from pathlib import Path

from memtx.cli.command import Commands, add_command


def add(commands: Commands) -> None:
    """Adds `memtx verify` to the command line."""
    command = add_command(
        commands,
        name="verify",
        summary="check a saved memory or model, without running it",
        examples=["memtx verify memory", "memtx verify memory --json"],
    )
    command.add_argument("path", metavar="PATH", type=Path, help="the folder")
    command.add_argument("--json", action="store_true", help="write what was found as JSON")
    command.set_defaults(call=verified)


def verified(asked: argparse.Namespace) -> int:
    """Prints what `memtx.verify` found; returns 0 for a sound folder, else 1."""
    from memtx.spec import verify

    report = verify(asked.path)
    if asked.json:
        print(json.dumps(report, indent=2))
    elif report["sound"]:
        numbers = ", ".join(f"{count:,} {kind}" for kind, count in report["dtype"].items())
        print(f"{asked.path}: a sound {report['kind']} of {numbers}, sha256 {report['sha256']}")
    else:
        print("\n".join([f"{asked.path}: not sound", *report["trouble"]]), file=sys.stderr)
    return 0 if report["sound"] else 1
