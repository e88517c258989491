"""Runs the benchmarks that this machine can run, one process each, and writes the page of results.

    make bench
    PYTHONPATH=src:. python3 -m benchmarks --only routed_read data

On a machine with a GPU the sizes are those of the committed results; on a CPU only those are run
that measure something there. Rivals that are not installed are left out or recorded as errors.
`data` trains a real model: it runs where `MEMTX_TEST_DATA` names a folder of real inputs.
"""

import argparse
import os
import subprocess
import sys
import time

import torch

BANKS = ["--sizes", "16384", "65536", "262144", "1048576"]
# Of each script the options of every run.
SCRIPTS: dict[str, dict[str, list[list[str]]]] = {
    "cuda": {
        "adapter_step": [[]],
        "adapter_profile": [[]],
        "adapter_families": [["--size", "1.5b"]],
        "rows": [["--size", "1.5b"]],
        "routed_read": [[], ["--sweep"]],
        "mixture_of_chapters": [["--rows", "16"]],
        "bank_size": [
            [
                "--work",
                "step",
                *BANKS,
                "--variants",
                "frozen-bank",
                "dense-adamw",
                "sparse-adagrad",
            ],
            ["--work", "token", *BANKS],
        ],
        "generation": [["--size", "1.5b", "--batches", "1", "64"]],
        "page_read": [[]],
        "out_of_core": [[]],
        "step_profile": [["--seconds", "900"]],
        "tensor_memory": [["--size", "full"]],
        "associative_recall": [[]],
        "loop_overhead": [[]],
    },
    "cpu": {
        "adapter_families": [["--size", "tiny"]],
        "rows": [["--size", "tiny"]],
        "routed_read": [["--cpu"], ["--cpu", "--sweep"]],
        "page_read": [["--cpu"]],
        "tensor_memory": [["--size", "cpu"]],
        "loop_overhead": [[]],
    },
}
DATA = os.environ.get("MEMTX_TEST_DATA")
if DATA is not None:
    SCRIPTS["cpu"]["data"] = [["--data", DATA]]
RESULTS = "benchmarks/results"


def main() -> int:
    """Run them; 1 if any failed, the others are run all the same."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scripts = SCRIPTS[device]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=scripts, default=list(scripts))
    options = parser.parse_args()
    failed = []
    for name in options.only:
        started = time.perf_counter()
        for given in scripts[name]:
            command = [sys.executable, f"benchmarks/{name}.py", *given, "--output", RESULTS]
            print(" ".join(command[1:]), flush=True)
            if subprocess.run(command, check=False).returncode != 0:
                failed.append(" ".join([name, *given]))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    subprocess.run([sys.executable, "benchmarks/performance.py"], check=True)
    if failed:
        print(f"benchmarks: these failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
