"""Running the workers of tests in real processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(folder: Path, job: str) -> subprocess.CompletedProcess[str]:
    """Run `tests.train.worker` in two processes; a hang ends in an error after three minutes."""
    return launch("tests.train.worker", folder=folder, arguments=[job], num_processes=2)


def launch(
    module: str, *, folder: Path, arguments: list[str], num_processes: int
) -> subprocess.CompletedProcess[str]:
    """Run a module in processes, with a folder as its first argument."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={num_processes}", f"--log-dir={folder / 'logs'}"]
    command += ["-m", module, str(folder), *arguments]
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
