"""Compiles, in many processes at once, the kernels that fla tries before it is fast.

    PYTHONPATH=src:. python3 benchmarks/warm_rivals.py --processes 12

fla's kernels choose among many configurations when they first meet a shape, and triton compiles
them one after the other: two to three minutes for each of the cases of `tensor_memory`. Here every
process compiles a share of them into triton's cache on disk, where `tensor_memory` finds them. What
is chosen is not kept: it is measured where it is used.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks.tensor_memory import inputs_of
from benchmarks.tensor_variants import FLA, VARIANTS, full_cases


def try_a_share(index: int, count: int) -> None:
    """Let triton's tuner know every `count`-th configuration alone."""
    from triton.runtime import autotuner

    make = autotuner.Autotuner.__init__

    def made(self: Any, fn: Any, arg_names: Any, configs: Any, *others: Any, **named: Any) -> None:
        given = list(configs)
        make(self, fn, arg_names, given[index::count] or given[:1], *others, **named)

    autotuner.Autotuner.__init__ = made


def compile_share(index: int, count: int) -> None:
    """Run each kernel once, forward and backward, on the two widths of heads."""
    try_a_share(index, count)
    _, long, short, *_ = full_cases()
    for case in (long, short):
        for name in FLA:
            inputs = inputs_of(case, dtype=torch.bfloat16, device=torch.device("cuda"))
            VARIANTS[name].make(case)(*inputs).sum().backward()
            torch.cuda.synchronize()


def main() -> int:
    """Start the processes and wait for them; 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--share", type=int, help="which of the processes this is")
    options = parser.parse_args()
    if options.share is not None:
        compile_share(options.share, options.processes)
        return 0
    command = [sys.executable, __file__, "--processes", str(options.processes), "--share"]
    environment = os.environ | {"FLA_CACHE_RESULTS": "0"}
    started = [
        subprocess.Popen([*command, str(number)], env=environment)
        for number in range(options.processes)
    ]
    return max(process.wait() != 0 for process in started)


if __name__ == "__main__":
    sys.exit(main())
