"""Every kind of state that a run has goes through a checkpoint as it was."""

import json
import random
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from memtx.train import (
    AdamW,
    Float16Autocast,
    LayersAsUnits,
    Resume,
    RunCheckpoints,
    launched_sharded,
)
from memtx.train.optimizer import SGD, Adam, AdamW8bit
from memtx.train.random_state import random_state, set_random_state
from memtx.train.run_checkpoints import Snapshot
from memtx.train.run_state import optimizer_state, place_for
from memtx.train.together import Together, plain_errors
from tests.train import tiny
from tests.train.test_checkpoints import at

STEPS, BREAK = 6, 3
BETAS = (0.9, 0.95)
OPTIMIZERS = [
    AdamW(betas=BETAS, eps=1e-8),
    Adam(betas=BETAS, eps=1e-8),
    SGD(momentum=0.9),
    SGD(momentum=0.0),
    # One half of the tensors with moments of a byte each, the other in float32.
    AdamW8bit(betas=BETAS, eps=1e-8, smallest=800),
]


def trained(folder, *, optimizer, precision, start, every):
    """A run and what it left: memory, losses, the optimizer's state."""
    model = tiny.adapter(model=tiny.base(seed=0))
    made = tiny.trainer(model=model, steps=STEPS)
    saver = RunCheckpoints(folder=folder, every=every, keep=9)
    made = replace(
        made,
        optimizer=optimizer,
        precision=precision or made.precision,
        start=start or made.start,
        checkpoints=[saver],
    )
    records = made.run()
    return tiny.memory_of(model), [record["loss"] for record in records]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: f"{type(each).__name__}")
def test_the_optimizer_goes_on_as_if_nothing_had_been(tmp_path, optimizer):
    keys = {"optimizer": optimizer, "precision": None}
    memory, losses = trained(tmp_path / "a", start=None, every=BREAK, **keys)
    (tmp_path / "a" / f"step-{STEPS:08d}").rename(tmp_path / "last")
    resumed = Resume(folder=tmp_path / "a")
    again, later = trained(tmp_path / "a", start=resumed, every=STEPS, **keys)
    assert later == losses[BREAK:]
    assert tiny.same(again, memory)


def test_the_scale_of_the_loss_goes_on_as_if_nothing_had_been(tmp_path):
    # It grows every other step, so that it is not what it began with.
    precision = Float16Autocast(
        initial_scale=4.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2
    )
    keys = {"optimizer": OPTIMIZERS[0], "precision": precision}
    memory, losses = trained(tmp_path / "a", start=None, every=BREAK, **keys)
    folder_of_last = (tmp_path / "a" / f"step-{STEPS:08d}").rename(tmp_path / "last")
    resumed = Resume(folder=tmp_path / "a")
    again, later = trained(tmp_path / "a", start=resumed, every=STEPS, **keys)
    assert later == losses[BREAK:]
    assert tiny.same(again, memory)
    values = (folder_of_last / "run.json").read_text(encoding="utf-8")
    assert json.loads(values)["scaler"]["scale"] == 32.0


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0.0, 1.0),
        np.random.rand(),
        np.random.randn(),
        float(torch.rand(1)),
        float(torch.randn(1)),
    ]


def test_random_numbers_go_on():
    # One of a pair of normal numbers is kept for the next call: that is state as well.
    random.gauss(0.0, 1.0)
    np.random.randn()
    cpu = torch.device("cpu")
    state = random_state(cpu)
    wanted = draw()
    assert draw() != wanted
    set_random_state(state, device=cpu)
    assert draw() == wanted


def test_what_an_optimizer_keeps_is_named_after_the_parameter():
    model = tiny.adapter(model=tiny.base(seed=0))
    run = at(model, step=0)
    assert optimizer_state(run) == ({}, {})
    for parameter in model.memory_parameters():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    tensors, values = optimizer_state(run)
    # A bank that two readers share is there once.
    assert [name for name in tensors if "bank" in name] == [
        f"model.banks.0.tokens/{key}" for key in ("step", "exp_avg", "exp_avg_sq")
    ]
    assert values == {}


def test_a_part_that_cannot_be_told_from_a_whole_is_refused():
    model = tiny.adapter(model=tiny.base(seed=0))
    with launched_sharded(
        units=LayersAsUnits(), param_dtype=None, reduce_dtype=None, reshard_after_forward=True
    ) as parallelism:
        parallelism.wrap(model)
        run = at(model, step=0)
        run.optimizer.state[model.banks[0].tokens]["codes"] = torch.zeros(3)
        with pytest.raises(
            ValueError, match=r"got optimizer='AdamW', parameter='model\.banks\.0.*state='codes';"
        ):
            optimizer_state(run)
        # A number that all processes share is none of a parameter's.
        run.optimizer.state[model.banks[0].tokens]["codes"] = torch.zeros(())
        assert list(optimizer_state(run)[0]) == ["model.banks.0.tokens/codes"]


def test_state_of_a_parameter_that_is_not_there_is_refused():
    run = at(tiny.adapter(model=tiny.base(seed=0)), step=0)
    size, dtype = torch.Size([24, tiny.WIDTH]), torch.float32
    place = place_for(run, name="model.banks.0.tokens/exp_avg", size=size, dtype=dtype)
    assert (place.shape, place.dtype) == (size, dtype)
    with pytest.raises(ValueError, match=r"Resume: .* got state='other/exp_avg'; resume the run"):
        place_for(run, name="other/exp_avg", size=size, dtype=dtype)


def test_work_that_fails_says_in_which_process():
    model = tiny.adapter(model=tiny.base(seed=0))
    together = Together(parallelism=at(model, step=0).parallelism)
    with pytest.raises(OSError, match="^process 0: ZeroDivisionError: division by zero$"):
        together.all_do(lambda: 1 / 0)
    assert together.first_does(lambda: 5) == 5


def test_an_error_of_torchs_checkpoint_becomes_one_that_is_caught():
    failures = {1: (OSError(28, "No space left on device"), traceback.StackSummary())}
    with (
        pytest.raises(OSError, match=r"^process 1: OSError: \[Errno 28\] No space left on device$"),
        plain_errors(),
    ):
        raise CheckpointException("write", failures)


def test_snapshot_keeps_what_it_is_given():
    assert Snapshot(step=3, tensors={}, shared="{}", own="{}").step == 3
