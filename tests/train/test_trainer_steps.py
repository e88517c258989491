"""What a step does and in which order: batches fetched ahead, one wait, who is told."""

import hashlib
import math
import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from memtx.adapters import MemoryAdapter
from memtx.data import Batches
from memtx.train import AdamW, SingleProcess, digest
from memtx.train.identity import breakdown, identities
from tests.train import tiny


@pytest.fixture
def model() -> MemoryAdapter:
    return tiny.adapter(model=tiny.base(seed=0))


class Noted:
    """A stream that notes into a diary when a batch is taken."""

    def __init__(self, *, diary: list[str], broken: int) -> None:
        self.inner = tiny.fact_batches(batch_size=2)
        self.diary = diary
        self.broken = broken
        self.taken = 0

    def next_batch(self, *, rank: int, world_size: int) -> dict[str, torch.Tensor]:
        self.diary.append(f"batch {self.taken}")
        if self.taken == self.broken:
            raise OSError("the disk is gone")
        self.taken += 1
        return self.inner.next_batch(rank=rank, world_size=world_size)

    def state_dict(self) -> dict[str, object]:
        return self.inner.state_dict()

    def load_state_dict(self, state) -> None:
        self.inner.load_state_dict(state)


class NotedOptimizer:
    """An optimizer that notes into a diary when it steps."""

    def __init__(self, *, diary: list[str]) -> None:
        self.diary = diary

    def make(self, groups) -> torch.optim.Optimizer:
        made = AdamW(betas=(0.9, 0.95), eps=1e-8).make(groups)
        made.register_step_post_hook(self.note)
        return made

    def note(self, optimizer, args, kwargs) -> None:
        self.diary.append("update")


class NotedPlace:
    """One process that notes into a diary when gradients are clipped and the model is whole."""

    def __init__(self, *, diary: list[str]) -> None:
        self.inner = SingleProcess(device=torch.device("cpu"))
        self.rank, self.world_size, self.device = 0, 1, self.inner.device
        self.diary = diary
        self.summed: list[torch.Tensor] = []

    def wrap(self, module):
        return self.inner.wrap(module)

    def all_sum(self, tensor):
        self.summed.append(tensor)
        return tensor

    def no_sync(self, module):
        self.diary.append("no_sync")
        return self.inner.no_sync(module)

    @contextmanager
    def whole(self, module):
        self.diary.append("whole")
        yield
        self.diary.append("parts")

    def clip(self, parameters, max_norm):
        self.diary.append("clip")
        return self.inner.clip(parameters, max_norm)


class Told:
    """Evaluation, callback, logger and saver in one: notes when it is called."""

    def __init__(self, *, diary: list[str], every: int) -> None:
        self.diary = diary
        self.every = every

    def measure(self) -> dict[str, float]:
        self.diary.append("measure")
        return {"score": 1.0}

    def after_step(self, run, record) -> None:
        self.diary.append(f"callback {run.step} {record.get('score')}")
        record["added"] = 2.0

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state) -> None:
        """Nothing."""

    def begin(self, step: int) -> None:
        self.diary.append(f"begin {step}")

    def log(self, record) -> None:
        self.diary.append(f"log {record['step']} {record['added']}")

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, run, record) -> None:
        self.diary.append(f"save {run.step} {run.streams['facts'].taken}")

    def close(self) -> None:
        self.diary.append("close")


def diary_of(model, *, steps: int, every: int, broken: int, accumulation: int) -> list[str]:
    diary: list[str] = []
    told = Told(diary=diary, every=every)
    replace(
        tiny.trainer(model=model, steps=steps),
        streams={"facts": Noted(diary=diary, broken=broken)},
        optimizer=NotedOptimizer(diary=diary),
        parallelism=NotedPlace(diary=diary),
        accumulation=accumulation,
        evaluations=[told],
        callbacks=[told],
        loggers=[told],
        checkpoints=[told],
    ).run()
    return diary


def test_a_step_goes_in_this_order(model):
    # The next batch is fetched while the device works, but not before a measure or a save.
    assert diary_of(model, steps=3, every=2, broken=-1, accumulation=1) == [
        *["begin 0", "batch 0", "clip", "batch 1", "update", "callback 1 None", "log 1 2.0"],
        *["clip", "update", "whole", "measure", "parts", "callback 2 1.0", "log 2 2.0", "save 2 2"],
        *["batch 2", "clip", "update", "callback 3 None", "log 3 2.0", "save 3 3"],
        *["close", "close"],
    ]


def test_accumulation_syncs_in_its_last_part_only(model):
    diary = diary_of(model, steps=1, every=1, broken=-1, accumulation=3)
    assert diary[1:6] == ["batch 0", "batch 1", "batch 2", "no_sync", "no_sync"]
    assert diary.count("update") == 1


def test_a_stream_that_fails_ends_the_run_with_its_own_error(model):
    with pytest.raises(OSError, match="the disk is gone"):
        diary_of(model, steps=5, every=9, broken=2, accumulation=1)


class Asked:
    """A callback in whose midst the system asks the process to stop."""

    def after_step(self, run, record) -> None:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state) -> None:
        """Nothing."""


def test_a_run_that_is_asked_to_stop_fetches_nothing_more(model):
    diary: list[str] = []
    told = Told(diary=diary, every=100)
    trainer = replace(
        tiny.trainer(model=model, steps=9),
        streams={"facts": Noted(diary=diary, broken=-1)},
        callbacks=[Asked()],
        checkpoints=[told],
    )
    with pytest.raises(SystemExit):
        trainer.run()
    # The batch at hand is learnt, and the streams stand right behind it.
    assert diary == ["batch 0", "batch 1", "batch 2", "save 3 3", "close"]


def test_counts_are_summed_on_the_cpu_and_means_where_the_model_is(model):
    place = NotedPlace(diary=[])
    trainer = replace(tiny.trainer(model=model, steps=1), parallelism=place)
    batch = trainer.streams["facts"][0]
    trainer.run()
    sums, means = place.summed
    labels = int((batch["labels"][:, 1:] != -100).sum())
    # Labels, tokens that are no padding, and how many processes were asked to stop.
    assert sums.tolist() == [labels, int(batch["attention_mask"].sum()), 0]
    assert means.dtype == torch.float32


class Waits:
    """Notes each time that a number is asked of a tensor outside of a forward."""

    def __init__(self, *, objective: torch.nn.Module) -> None:
        self.noted: list[str] = []
        self.inside = False
        objective.register_forward_pre_hook(self.enter)
        objective.register_forward_hook(self.leave)

    def enter(self, module, args) -> None:
        self.inside = True

    def leave(self, module, args, output) -> None:
        self.inside = False

    def of(self, name: str):
        plain = getattr(torch.Tensor, name)

        def asked(tensor):
            # What the forward asks of its own masks is the model's affair; counts are on the CPU.
            if not self.inside and tensor.is_floating_point():
                self.noted.append(name)
            return plain(tensor)

        return asked


def test_the_host_waits_for_the_device_once_a_step(model, monkeypatch):
    trainer = tiny.trainer(model=model, steps=3)
    waits = Waits(objective=trainer.objective)
    for name in ("tolist", "item", "__float__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, waits.of(name))
    trainer.run()
    assert waits.noted == ["tolist"] * 3


def test_a_step_without_labels_is_told_of_once(model):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}]
    stream = Batches(rows=rows, batch_size=1, seed=0, pad_token_id=0)
    trainer = replace(tiny.trainer(model=model, steps=3), streams={"facts": stream})
    with pytest.warns(
        UserWarning, match=r"^Trainer: .*got step=1, nothing for=\['facts'\];"
    ) as told:
        records = trainer.run()
    assert len(told) == 1
    assert [record["loss"] for record in records] == [0.0] * 3


def test_a_batch_is_named_by_its_tokens():
    batch = tiny.fact_batches(batch_size=2)[3]
    wanted = hashlib.sha1(batch["input_ids"].numpy().tobytes()).hexdigest()
    assert digest(batch) == wanted[:12]
    assert digest({"input_ids": batch["input_ids"].int()}) == wanted[:12]
    changed = batch["input_ids"].clone()
    changed[0, 0] += 1
    assert digest({"input_ids": changed}) != wanted[:12]


class Second:
    """The second of three processes: sums know of it alone."""

    rank, world_size = 1, 3

    def all_sum(self, tensor):
        return tensor


def test_batches_of_all_processes_are_numbered_as_they_were_handed_out():
    stream = tiny.fact_batches(batch_size=1)
    own = [{"facts": stream[0], "text": stream[1]}, {"facts": stream[2], "text": stream[3]}]
    found = identities(own, shares=[0.5, math.nan], before=4, parallelism=Second())
    assert [(each.stream, each.number, each.process) for each in found] == [
        (name, number, number % 3) for number in range(24, 30) for name in ("facts", "text")
    ]
    mine = [each for each in found if each.process == 1]
    assert [each.sha1 for each in mine] == [digest(stream[number]) for number in range(4)]
    assert [each.share for each in mine[:2]] == [0.5, 0.5]
    message = breakdown("all must be well", record={"step": 5.0}, found=found)
    assert message.startswith("Trainer: all must be well, got step=5.0, batches=['facts 28 ")
    assert "share nan)" in message
    assert "facts 25 " not in message


def test_many_batches_are_cut_short():
    stream = tiny.fact_batches(batch_size=1)
    batches = [{"facts": stream[0]}] * 9
    found = identities(batches, shares=[0.5] * 9, before=4, parallelism=Second())
    assert "'and 19 more'" in breakdown("all must be well", record={}, found=found)
