"""Recovery, shown: a run is killed, goes on where it was saved, and ends where it would have.

    python examples/resume.py

Trains a small stack three times on one text: once to the end, once until it is killed as nobody can
hinder, and once more from what that left. Prints both losses side by side, and whether they and the
weights are equal to the last bit. It takes half a minute on one core. docs/recovery.md says more.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from factories.from_scratch import dense_a_tiny
from factories.tiny_base import manual, qwen_tokenizer
from memtx.data import (
    Documents,
    FullRows,
    ShuffleBuffer,
    SplitLong,
    StreamBatches,
    Streamed,
    TextEncoder,
)
from memtx.train import (
    AdamW,
    FullPrecision,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    ResumeIfAny,
    RunCheckpoints,
    Trainer,
    WarmupCosine,
    launched,
)
from memtx.train.loggers import Record
from memtx.train.run import Callback, Run
from memtx.train.run_files import checkpoints_in

SEED = int(os.environ.get("MEMTX_SEED", "0"))
OUTPUT = "runs/resume"
STEPS = 24  # of the whole run
EVERY = 4  # steps between checkpoints
DEATH = 15  # the step after which the run is killed
NEVER = 0


class Death:
    """Kills the process after a step: no handler is asked, nothing is saved, nothing is closed."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def after_step(self, run: Run, record: Record) -> None:
        """Die, if it is the step."""
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def state_dict(self) -> dict[str, object]:
        """Remember nothing."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up nothing."""


class Show:
    """Prints each step as it is done, so that what was done before a death can be seen."""

    def begin(self, step: int) -> None:
        """Say where the run starts."""
        print(f"starts behind step {step}", flush=True)

    def log(self, record: Record) -> None:
        """Print a step."""
        print(f"step {record['step']:>3}  loss {record['loss']:.6f}", flush=True)

    def close(self) -> None:
        """Leave everything as it is."""


def train(folder: Path, *, callbacks: list[Callback]) -> tuple[list[Record], torch.Tensor]:
    """Train, from where the folder's newest checkpoint stands, and give losses and weights."""
    torch.manual_seed(SEED)
    documents = manual(seed=SEED)[0][:40]
    model = dense_a_tiny()
    text = StreamBatches(
        documents=ShuffleBuffer(
            documents=Documents(
                source=Streamed(dataset=[{"text": document} for document in documents]),
                encoder=TextEncoder(
                    field="text", tokenizer=qwen_tokenizer(documents, vocabulary=2_048)
                ),
                limit=SplitLong(length=512),
                num_workers=0,
                chunk=4,
            ),
            size=16,
            seed=SEED,
        ),
        packing=FullRows(length=96),
        batch_size=4,
        pad_token_id=0,
    )
    with launched() as parallelism:
        records = Trainer(
            objective=Objective(
                model=model,
                terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=1024)],
            ),
            streams={"text": text},
            groups=[
                ParameterGroup(
                    name="stack",
                    modules=[model],
                    without=[],
                    learning_rate=4e-3,
                    weight_decay=0.1,
                )
            ],
            optimizer=AdamW(betas=(0.9, 0.95), eps=1e-8),
            schedule=WarmupCosine(warmup_steps=4, total_steps=STEPS, floor=0.0),
            precision=FullPrecision(),
            parallelism=parallelism,
            # The same line starts the run and goes on with it.
            start=ResumeIfAny(folder=folder),
            steps=STEPS,
            accumulation=1,
            clip_norm=1.0,
            evaluations=[],
            callbacks=callbacks,
            checkpoints=[RunCheckpoints(folder=folder, every=EVERY, keep=2)],
            loggers=[Show()],
        ).run()
    return records, torch.cat([p.detach().flatten() for p in model.parameters()])


def show(folder: Path) -> None:
    """Train to the end, be killed, go on, and compare."""
    if folder.exists():
        sys.exit(f"resume: the output must be free, got folder='{folder}'; name another.")
    print(f"--- a run of {STEPS} steps that nobody disturbs")
    expected, weights = train(folder / "whole", callbacks=[Death(step=NEVER)])
    print(f"--- the same run, killed after step {DEATH} (kill -9)")
    again = [sys.executable, __file__, "--output", str(folder), "--die"]
    code = subprocess.run(again, check=False).returncode
    left = [path.name for path in checkpoints_in(folder / "killed")]
    print(f"it ended with {code} and left {', '.join(left)}")
    print("--- and started once more, by the same line")
    records, others = train(folder / "killed", callbacks=[Death(step=NEVER)])
    print(f"{'step':>4}{'undisturbed':>16}{'after the kill':>16}")
    for one, other in zip(expected[-len(records) :], records, strict=True):
        print(f"{one['step']:>4}{one['loss']:>16.8f}{other['loss']:>16.8f}")
    same = [each["loss"] for each in expected][-len(records) :] == [e["loss"] for e in records]
    print(f"losses equal to the last bit: {same}")
    print(f"weights equal to the last bit: {torch.equal(weights, others)}")
    print(f"steps that were done twice: {DEATH - (STEPS - len(records))} of {STEPS}")
    shutil.rmtree(folder)
    if not (same and torch.equal(weights, others)):
        sys.exit("resume: the runs differ.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill a run, go on with it, and compare.")
    parser.add_argument(
        "--output", default=OUTPUT, metavar="FOLDER", help=f"where to work ({OUTPUT} if absent)"
    )
    parser.add_argument("--die", action="store_true", help="only be the run that is killed")
    options = parser.parse_args()
    if options.die:
        train(Path(options.output) / "killed", callbacks=[Death(step=DEATH)])
    else:
        show(Path(options.output))
