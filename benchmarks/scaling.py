"""Training the 371M mixture of chapters on one GPU and on N, by DDP and by FSDP2.

    PYTHONPATH=src:. torchrun --nproc_per_node=2 benchmarks/scaling.py --rows 16 \
        --output benchmarks/results

Every step is one of memtx's `Trainer`, on `--rows` rows of 1,024 random tokens for each process: so
N processes do N times the work of one, and `efficiency` is the time of a step of the first process
alone over that of all of them, which is their tokens per second over N times its own. The first
process runs alone first, while the others wait. Matrix products are in bfloat16, by autocast, or
with `-bf16` by gathering the parameters in bfloat16. Blocks are not compiled. `peak_gib` is of what
torch allocated in the first process.

`--round-trip WAY ...` makes the second of the checks below alone, for these ways, and writes
`scaling_round_trip.json`.

Two checks are records too. `shared-bank-gradient` is the largest difference of any gradient of a
small stack whose bank two blocks read, in float32, from that of one process with all the rows, over
the largest gradient of the tensor. `checkpoint-round-trip` saves the run of the 371M stack behind
two steps by `RunCheckpoints`, brings a new model to it, counts the numbers of weights and optimizer
that are not the same bit for bit, and goes on to the fifth step: `loss_difference` and
`different_at_the_end` are from those of a run without a stop, both in one order of addition where
torch has one. Its milliseconds are those for which a save holds up the run.
"""

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.clocks import clock_of, forget_peak, peak_gib
from benchmarks.records import Record, write_records
from benchmarks.scaling_checks import gradient_check, gradients_alone, round_trip
from benchmarks.scaling_runs import (
    WAYS,
    Setting,
    clean,
    full_setting,
    tiny_setting,
    together,
    trainer_of,
)
from memtx.train import BFloat16Autocast, SingleProcess, launched
from memtx.train.parallel import Parallelism
from memtx.train.precision import Precision

NAME = "scaling"
LIBRARIES = ["torch", "triton"]


def timed(*, setting: Setting, parallelism: Parallelism, precision: Precision) -> Record:
    """Run, and give the median time of a step, tokens per second and the peak."""
    steps = setting.warm_up + setting.timed
    forget_peak(setting.device)
    clock = clock_of(setting.device)
    trainer = trainer_of(setting=setting, parallelism=parallelism, precision=precision, steps=steps)
    records = replace(trainer, loggers=[Ticking(clock)]).run()
    found: Record = {"peak_gib": peak_gib(setting.device), "last_loss": records[-1]["loss"]}
    if parallelism.rank == 0:
        # The last two records come together: a record is told when the next step is on its way.
        each = clock.milliseconds()[setting.warm_up - 1 : -1]
        milliseconds = statistics.median(each)
        tokens = setting.rows * setting.length * parallelism.world_size
        found |= {
            "milliseconds": milliseconds,
            "milliseconds_least": min(each),
            "milliseconds_most": max(each),
            "tokens_per_second": 1000.0 * tokens / milliseconds,
        }
    return found


class Ticking:
    """A logger that ticks a clock behind each step."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def begin(self, *, step: int) -> None:
        """Nothing is to be begun."""

    def log(self, record: Record) -> None:
        """Tick."""
        self.clock.log(record)

    def close(self) -> None:
        """Nothing is open."""


def alone(setting: Setting) -> Record:
    """Time a single process; in a group its routers would look for the others' statistics."""
    say("single-process")
    single = SingleProcess(device=setting.device)
    record = timed(setting=setting, parallelism=single, precision=BFloat16Autocast())
    clean(setting.device)
    return {"variant": "single-process", "processes": 1, "efficiency": 1.0, "ratio": 1.0} | record


def scaling(setting: Setting, *, single: Record) -> list[Record]:
    """Time all processes in each way, against the first one alone."""
    found = [single]
    for name, (make, precision) in WAYS.items():
        say(name)
        record = timed(setting=setting, parallelism=make(setting.device), precision=precision)
        clean(setting.device)
        together()
        if single:
            efficiency = single["milliseconds"] / record["milliseconds"]
            record |= {"efficiency": efficiency, "ratio": 1.0 / efficiency}
        found.append({"variant": name, "processes": dist.get_world_size()} | record)
    return [{"case": setting.case} | each for each in found]


def say(text: str) -> None:
    """Say, by the first process, what is going on."""
    if os.environ["RANK"] == "0":
        print(text, file=sys.stderr, flush=True)


def table(records: list[Record]) -> str:
    """Write the records as a table."""
    lines = [f"{'case':<48}{'variant':<16}{'N':>3}{'ms':>10}{'tokens/s':>11}{'GiB':>7}{'eff.':>7}"]
    for r in records:
        numbers = [r.get("milliseconds"), r.get("tokens_per_second"), r.get("peak_gib")]
        ms, speed, peak = ("-" if each is None else f"{each:,.1f}" for each in numbers)
        share = f"{r['efficiency']:.3f}" if "efficiency" in r else "-"
        start = f"{r['case']:<48}{r['variant']:<16}{r['processes']:>3}"
        lines.append(f"{start}{ms:>10}{speed:>11}{peak:>7}{share:>7}")
        if "relative_error" in r:
            lines.append(f"    relative error {r['relative_error']:.2e} of {r['of']}")
        if "different" in r:
            lines.append(
                f"    of {r['compared']:,} numbers {r['different']} differ where it was saved, "
                f"{r['different_at_the_end']} at the end"
            )
    return "\n".join(lines)


def own_device() -> torch.device:
    """Give the device of this process on its node."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def use_fast_products() -> None:
    """Train as on such a GPU one does: what stays float32, such as router scores, by TF32."""
    torch.set_float32_matmul_precision("high")


def main() -> int:
    """Run, write and print; 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Scale the training of the 371M stack.")
    parser.add_argument("--cpu", action="store_true", help="a size for CPUs; measures nothing")
    parser.add_argument("--rows", type=int, default=16, help="rows of each process's batch")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument(
        "--round-trip", nargs="+", choices=WAYS, help="save and resume in these ways, nothing else"
    )
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it by torchrun")
    # Read when a GPU is first used: products that add in one order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make = tiny_setting if options.cpu else full_setting
    setting = make(rows=options.rows, device=own_device())
    return only_round_trip(setting, options) if options.round_trip else everything(setting, options)


def only_round_trip(setting: Setting, options: argparse.Namespace) -> int:
    """Save and resume, and write it."""
    with launched() as parallelism:
        use_fast_products()
        records = round_trip(setting, ways=options.round_trip)
        name = f"{NAME}_round_trip"
        return told(records, parallelism=parallelism, name=name, folder=options.output)


def everything(setting: Setting, options: argparse.Namespace) -> int:
    """Time one process and all, in each way, and make both checks."""
    single: Record = {}
    wanted: dict[str, Tensor] = {}
    # The others wait for the first process, which runs alone as if there were no others.
    if os.environ["RANK"] == "0":
        wanted = gradients_alone(setting.device, processes=int(os.environ["WORLD_SIZE"]))
        use_fast_products()
        single = alone(setting)
    with launched() as parallelism:
        device = parallelism.device
        torch.set_float32_matmul_precision("highest")
        records = gradient_check(device, wanted=wanted)
        use_fast_products()
        records += scaling(setting, single=single)
        records += round_trip(setting, ways=["ddp", "fsdp2"])
        return told(records, parallelism=parallelism, name=NAME, folder=options.output)


def told(records: list[Record], *, parallelism: Parallelism, name: str, folder: Path) -> int:
    """Write and print the records, by the first process; 1 if a check failed."""
    if parallelism.rank > 0:
        return 0
    path = write_records(
        folder=folder, name=name, device=parallelism.device, libraries=LIBRARIES, records=records
    )
    print(f"{table(records)}\n{path}")
    wrong = [r for r in records if r.get("relative_error", 0.0) > 1e-4 or r.get("different", 0) > 0]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
