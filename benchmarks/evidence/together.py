"""Runs a script of many runs in several processes at once, shared out over GPUs.

    PYTHONPATH=src:. python3 -m benchmarks.evidence.together --gpus 0 1 --each 10 \\
        --logs runs/logs benchmarks.evidence.facts --data DATA --base runs/evidence/base \\
        --work runs/evidence/facts

Each process gets `--shard i/n`, one GPU to see and a log of its own. With `--eager` torch.compile
does nothing: twenty processes that compile at once take longer than their runs. A small model
leaves most of a GPU idle: ten processes then do several times what one does. It ends when all have
ended, with 1 if one failed; a signal to stop is passed on.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

# Of a log of what failed.
LINES = 15


def environment(gpu: str | None, *, eager: bool) -> dict[str, str]:
    """Give a process one thread of arithmetic, and one GPU or none."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if eager:
        found["TORCHDYNAMO_DISABLE"] = "1"
    found["CUDA_VISIBLE_DEVICES"] = "" if gpu is None else gpu
    return found


def started(
    script: list[str], *, given: dict[str, str], number: int, count: int, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process."""
    command = [sys.executable, "-m", *script, "--shard", f"{number}/{count}"]
    return subprocess.Popen(command, env=given, stdout=log, stderr=subprocess.STDOUT)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", nargs="*", default=[], help="numbers of GPUs; none: the CPU")
    parser.add_argument("--each", type=int, default=10, help="processes on each")
    parser.add_argument("--eager", action="store_true", help="compile nothing: for small steps")
    parser.add_argument("--logs", type=Path, required=True, help="folder of a log for each")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a module and its arguments")
    asked = parser.parse_args()
    if not asked.script:
        parser.error("name a module, such as benchmarks.evidence.facts, and its arguments")
    asked.logs.mkdir(parents=True, exist_ok=True)
    places: list[str | None] = [gpu for _ in range(asked.each) for gpu in asked.gpus or [None]]
    logs = [asked.logs / f"{number}.log" for number in range(len(places))]
    processes = []

    def stop(_number: int, _frame: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for number, gpu in enumerate(places):
        with logs[number].open("wb") as log:
            given = environment(gpu, eager=asked.eager)
            processes.append(
                started(asked.script, given=given, number=number, count=len(places), log=log)
            )
    codes = [process.wait() for process in processes]
    for log_file, code in zip(logs, codes, strict=True):
        if code:
            text = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
            print(f"{log_file} ended with {code}:", *text[-LINES:], sep="\n")
    print(f"{len(codes)} processes, {sum(code != 0 for code in codes)} of them failed")
    raise SystemExit(int(any(codes)))


if __name__ == "__main__":
    main()
