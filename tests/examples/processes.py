"""Starts the example scripts as a user does, in a folder that has `examples` as the repository."""

import os
import subprocess
import sys
from pathlib import Path

from tests.rules.source import ROOT


def workplace(folder: Path) -> Path:
    """Give a folder in which the commands that the examples print can be run as they are."""
    (folder / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    return folder


def start(command: list[str] | str, *, folder: Path, seed: int) -> subprocess.CompletedProcess[str]:
    """Run a command, or a line for the shell, in a folder; one that hangs ends in an error."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "MEMTX_SEED": str(seed),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    return subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def script(name: str, arguments: list[str], *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in one process, with the seed that is the default."""
    return start([sys.executable, f"examples/{name}.py", *arguments], folder=folder, seed=0)


def last_command(output: str) -> str:
    """Give the command line that ends what an example printed."""
    return output.rstrip().splitlines()[-1].strip()
