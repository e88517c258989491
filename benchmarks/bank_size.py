"""What a larger bank costs a training step and a generated token, at an equal number of reads.

    PYTHONPATH=src:. python3 benchmarks/bank_size.py --work step --sizes 16384 1048576 \
        --variants dense-adamw sparse-adagrad --output benchmarks/results
    PYTHONPATH=src:. python3 benchmarks/bank_size.py --work token --sizes 16384 1048576 \
        --output benchmarks/results

The 371M stack (`factories.mixture_of_chapters`) with a bank of so many memory tokens in chapters of
64, of which each segment reads 65, and the control of 24 layers without memory.

A step is that of `benchmarks/mixture_of_chapters.py`, with the routing of the source's program by
default. `frozen-bank` trains everything but the bank; `dense-adamw` all by fused AdamW, whose
gradient and moments have a number for each of the bank's; `sparse-*` have sparse bank gradients and
`BankRows` for the bank (`adagrad` and `sgd` are exact, `adam` is lazy), AdamW for the rest.
`update_milliseconds` is the part of clipping, optimizer and `zero_grad`. A token is decoded
greedily in bfloat16 with a static cache, keys and values frozen, windows of 128 choosing. `ratio`
is over the smallest bank of the same variant, `ratio_to_control` over the control. Records of other
cases that are in the file already stay there.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapter_step import quotient
from benchmarks.clocks import clock_of, forget_peak, peak_gib
from benchmarks.generation import generated
from benchmarks.records import Record, kept_records, write_records
from factories.mixture_of_chapters import control, reading
from memtx import MemoryTransformer, MemtxForCausalLM, RollingRouting, SequenceRouting
from memtx.generate import AsProjected, freeze_for_inference
from memtx.train import AdamW, BankRows, ParameterGroup, RowAdagrad, RowAdam, RowSGD
from memtx.train.bank_optimizer import RowRule
from memtx.train.sparse_gradients import clip_gradients, sparse_bank_gradients

NAME = "bank_size"
LIBRARIES = ["torch", "transformers", "triton"]
CHAPTER = 64
CONTROL = "control"
ADAM = AdamW(betas=(0.9, 0.95), eps=1e-8)
RULES: dict[str, RowRule] = {
    "sparse-adagrad": RowAdagrad(eps=1e-10),
    "sparse-sgd": RowSGD(),
    "sparse-adam": RowAdam(betas=(0.9, 0.95), eps=1e-8),
}
VARIANTS = ("frozen-bank", "dense-adamw", *RULES)
STRATEGIES = {
    "sequence": SequenceRouting(),
    "rolling-128": RollingRouting(window=128),
    "rolling-512": RollingRouting(window=512),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is trained and generated, on what."""

    batch: int
    length: int
    warm_up: int
    timed: int
    prompt: int
    new_tokens: int
    left_out: int
    rounds: int
    compiled: bool
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stack and its bank's size; None for the control."""

    size: int | None
    variant: str
    routing: str

    def compose(self) -> MemoryTransformer:
        """Compose the stack."""
        if self.size is None:
            return control()
        return reading(num_chapters=self.size // CHAPTER, strategy=STRATEGIES[self.routing])


def optimizer_of(model: MemoryTransformer, variant: str) -> torch.optim.Optimizer:
    """Make the optimizer of a variant; banks have a group of their own without decay."""
    banks = list(model.banks)
    rest = ParameterGroup(
        name="rest", modules=[model], without=banks, learning_rate=3e-4, weight_decay=0.1
    )
    if variant == "frozen-bank" or not banks:
        return ADAM.make([rest])
    own = ParameterGroup(
        name="banks", modules=banks, without=[], learning_rate=3e-4, weight_decay=0.0
    )
    if variant in RULES:
        return BankRows(rows=RULES[variant], rest=ADAM, banks=banks).make([rest, own])
    return ADAM.make([rest, own])


def steps_of(model: MemoryTransformer, *, variant: str, setting: Setting) -> tuple[Any, Any]:
    """Take the steps; give a clock of whole steps, and one of their updates."""
    called = torch.compile(model) if setting.compiled else model
    optimizer, parameters = optimizer_of(model, variant), list(model.parameters())
    whole, update = clock_of(setting.device), clock_of(setting.device)
    size = (setting.batch, setting.length)
    for _ in range(setting.warm_up + setting.timed):
        ids = torch.randint(model.embedding.vocab_size, size, device=setting.device)
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            loss = called(input_ids=ids, labels=ids).loss
        loss.backward()
        update.log({})
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update.log({})
        whole.log({})
    if not loss.isfinite():
        raise FloatingPointError(f"the loss must stay finite, got {loss.item()}")
    return whole, update


def train(case: Case, setting: Setting) -> Record:
    """Time training steps of a case on a model of its own."""
    torch.manual_seed(0)
    with setting.device:
        model = case.compose().train()
    for bank in model.banks:
        bank.requires_grad_(case.variant != "frozen-bank")
    if case.variant in RULES:
        sparse_bank_gradients(model)
    forget_peak(setting.device)
    whole, update = steps_of(model, variant=case.variant, setting=setting)
    steps = whole.milliseconds()[setting.warm_up - 1 :]
    # Two ticks a step: from the first to the second is the update.
    updates = update.milliseconds()[2 * setting.warm_up :: 2]
    median = statistics.median(steps)
    return {
        "milliseconds": median,
        "milliseconds_min": min(steps),
        "milliseconds_max": max(steps),
        "update_milliseconds": statistics.median(updates),
        "tokens_per_second": 1_000.0 * setting.batch * setting.length / median,
        "peak_gib": peak_gib(setting.device),
    }


def decode(case: Case, setting: Setting) -> Record:
    """Time generated tokens of a case."""
    torch.manual_seed(0)
    with setting.device:
        model = case.compose().to(torch.bfloat16).eval()
    frozen = None if case.size is None else freeze_for_inference(model, storage=AsProjected())
    size = (setting.batch, setting.prompt)
    ids = torch.randint(model.embedding.vocab_size, size, device=setting.device)
    face = MemtxForCausalLM.from_model(model)
    tokens: list[float] = []
    forget_peak(setting.device)
    for number in range(2 + setting.rounds):
        _, *each = generated(face, ids, new_tokens=setting.left_out + setting.new_tokens)
        tokens += each[setting.left_out :] if number > 1 else []
    return {
        "milliseconds": statistics.median(tokens),
        "milliseconds_min": min(tokens),
        "milliseconds_max": max(tokens),
        "tokens_per_second": 1_000.0 * setting.batch / statistics.median(tokens),
        "frozen_gib": 0.0 if frozen is None else frozen.nbytes / 2**30,
        "peak_gib": peak_gib(setting.device),
    }


def run(work: Callable[[Case, Setting], Record], case: Case, setting: Setting) -> Record:
    """Measure a case; a failure is a result."""
    kind = "step" if work is train else f"token after {setting.prompt}"
    mode = "compiled" if setting.compiled else "eager"
    compiled = "static cache" if work is decode else mode
    routing = "" if case.size is None else f" {case.routing}"
    record: Record = {
        "case": f"371M {kind} batch {setting.batch}{routing} {compiled}",
        "variant": case.variant,
        "num_memory_tokens": case.size,
        "milliseconds": None,
        "peak_gib": None,
    }
    started = time.perf_counter()
    try:
        record |= work(case, setting)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    said = record.get("error", f"{record['milliseconds'] or 0.0:.3f} ms")
    seconds = time.perf_counter() - started
    print(f"{case.variant} {case.size}: {said}, {seconds:.0f} s", file=sys.stderr, flush=True)
    torch.compiler.reset()
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return record


def add_ratios(records: Sequence[Record]) -> None:
    """Set each bank over the smallest of its variant, and over the control."""
    controls = [r for r in records if r["num_memory_tokens"] is None]
    for record in records:
        alike = [
            r for r in records if (r["case"], r["variant"]) == (record["case"], record["variant"])
        ]
        sized = [r for r in alike if r["num_memory_tokens"] is not None]
        if record not in sized:
            continue
        least = min(sized, key=lambda r: r["num_memory_tokens"])
        record["ratio"] = quotient(record["milliseconds"], least["milliseconds"])
        theirs = [r for r in controls if same_work(r["case"], record["case"])]
        if theirs:
            record["ratio_to_control"] = quotient(record["milliseconds"], theirs[0]["milliseconds"])


def same_work(one: str, other: str) -> bool:
    """Tell whether two cases differ in the routing alone."""
    words = [[word for word in case.split() if word not in STRATEGIES] for case in (one, other)]
    return words[0] == words[1]


def table(records: Sequence[Record]) -> str:
    """Write the records as a table."""
    lines = [
        f"{'case':<46}{'variant':<16}{'tokens':>10}{'ms':>9}{'update':>8}{'GiB':>8}{'ratio':>7}"
        f"{'control':>9}"
    ]
    for r in records:
        start = f"{r['case']:<46}{r['variant']:<16}{r['num_memory_tokens'] or '-':>10}"
        if "error" in r:
            lines.append(f"{start} {r['error'].splitlines()[0][:80]}")
            continue
        numbers = [
            "-" if r.get(key) is None else f"{r[key]:.{places}f}"
            for key, places in (
                ("milliseconds", 3),
                ("update_milliseconds", 2),
                ("peak_gib", 2),
                ("ratio", 3),
                ("ratio_to_control", 3),
            )
        ]
        ms, update, peak, ratio, over = numbers
        lines.append(f"{start}{ms:>9}{update:>8}{peak:>8}{ratio:>7}{over:>9}")
    return "\n".join(lines)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Give what is measured: the control, then each size in each variant."""
    routing = options.routing if options.work == "step" else "rolling-128"
    variants = options.variants if options.work == "step" else ["frozen"]
    plain = [] if options.leave_out_control else [Case(size=None, variant=CONTROL, routing="-")]
    return plain + [
        Case(size=size, variant=variant, routing=routing)
        for variant in variants
        for size in options.sizes
    ]


def main() -> int:
    """Run, write and print; 1 if a case failed."""
    parser = argparse.ArgumentParser(description="Time steps and tokens as a bank grows.")
    parser.add_argument("--work", choices=["step", "token"], required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="memory tokens")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["sparse-adagrad"])
    parser.add_argument("--routing", choices=STRATEGIES, default="sequence", help="of a step")
    parser.add_argument(
        "--rows", type=int, nargs="+", help="rows; 16 of a step, 1 and 64 of a token"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile steps")
    parser.add_argument("--leave-out-control", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="few tokens; measures nothing")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    usual = [16] if options.work == "step" else [1, 64]
    path = options.output / f"{NAME}.json"
    records: list[Record] = []
    for rows in options.rows or usual:
        setting = Setting(
            batch=rows,
            length=16 if options.tiny else 1_024,
            warm_up=1 if options.tiny else 5,
            timed=2 if options.tiny else 15,
            prompt=8 if options.tiny else 128,
            new_tokens=2 if options.tiny else 64,
            left_out=1 if options.tiny else 16,
            rounds=1 if options.tiny else 5,
            compiled=not options.eager,
            device=device,
        )
        for case in cases_of(options):
            found = [run(train if options.work == "step" else decode, case, setting)]
            keys = ("case", "variant", "num_memory_tokens")
            # Written anew after each, so that a run that is stopped keeps what it has.
            records = kept_records(path, found, keys=keys) + found
            add_ratios(records)
            write_records(
                folder=path.parent, name=NAME, device=device, libraries=LIBRARIES, records=records
            )
    print(f"{table(records)}\n{path}")
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
