"""The test of learning rates: what it finds, and that nothing of it stays."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from memtx.adapters import MemoryAdapter
from memtx.train import JsonLines, ParameterGroup, find_learning_rate
from tests.train import tiny


@pytest.fixture
def model() -> MemoryAdapter:
    return tiny.adapter(model=tiny.base(seed=0))


def trainer_of(model: MemoryAdapter, *, rate: float):
    trainer = tiny.trainer(model=model, steps=6)
    group = replace(trainer.groups[0], learning_rate=rate)
    return replace(trainer, groups=[group], streams={"facts": tiny.fact_batches(batch_size=5)})


def test_it_finds_a_rate_that_learns(model):
    trainer = trainer_of(model, rate=1.0)
    found = find_learning_rate(trainer, lowest=1e-6, highest=1e2, steps=60)
    factors = [record["learning_rate_factor"] for record in found.records]
    assert factors[0] == pytest.approx(1e-6)
    ratios = [later / earlier for earlier, later in pairwise(factors)]
    assert ratios == pytest.approx([1e8 ** (1 / 59)] * len(ratios))
    assert found.learning_rates == {"memory": found.factor}
    # A rate a hundred times lower learns next to nothing here, one as much higher harms.
    losses = {}
    for scale in (0.01, 1.0, 100.0):
        group = replace(trainer.groups[0], learning_rate=scale * found.factor)
        made = trainer_of(tiny.adapter(model=tiny.base(seed=0)), rate=1.0)
        model = made.objective.model
        records = replace(made, groups=[replace(group, modules=[model.banks, model.insertions])])
        losses[scale] = records.run()[-1]["loss"]
    assert losses[1.0] < 0.9 * losses[0.01]
    assert losses[1.0] < 0.9 * losses[100.0]


def test_nothing_of_it_stays(model, tmp_path):
    tiny.perturb(model)
    trainer = replace(
        trainer_of(model, rate=1e-3),
        loggers=[JsonLines(path=tmp_path / "metrics.jsonl")],
        streams={"facts": tiny.fact_batches(batch_size=2)},
    )
    stream = trainer.streams["facts"]
    stream.next_batch(rank=0, world_size=1)
    before, position = tiny.memory_of(model), json.dumps(stream.state_dict())
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    find_learning_rate(trainer, lowest=1e-3, highest=1e9, steps=20)
    assert tiny.same(tiny.memory_of(model), before)
    assert json.dumps(stream.state_dict()) == position
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert [part.training for part in model.modules()] == modes
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    # So a run afterwards is the run there would have been.
    other = tiny.adapter(model=tiny.base(seed=0))
    tiny.perturb(other)
    fresh = trainer_of(other, rate=1e-3)
    fresh = replace(fresh, streams={"facts": tiny.fact_batches(batch_size=2)})
    fresh.streams["facts"].next_batch(rank=0, world_size=1)
    losses = [[record["loss"] for record in each.run()] for each in (trainer, fresh)]
    assert losses[0] == losses[1]


def test_it_ends_when_the_loss_has_risen_far(model):
    found = find_learning_rate(trainer_of(model, rate=1.0), lowest=1e-3, highest=1e12, steps=100)
    assert len(found.records) < 100
    assert all(math.isfinite(record["loss"]) for record in found.records)


def test_rates_keep_their_ratio_and_frozen_groups_their_peace(model):
    trainer = trainer_of(model, rate=1.0)
    parts = {"bank": ([model.banks], [], 0.0), "near": ([model.insertions[0]], [model.banks], 1.0)}
    parts["far"] = ([model.insertions[1]], [model.banks], 0.25)
    groups = [
        ParameterGroup(
            name=name, modules=modules, without=without, learning_rate=rate, weight_decay=0.0
        )
        for name, (modules, without, rate) in parts.items()
    ]
    found = find_learning_rate(replace(trainer, groups=groups), lowest=1e-6, highest=1.0, steps=30)
    assert set(found.learning_rates) == {"near", "far"}
    assert found.learning_rates["far"] == 0.25 * found.learning_rates["near"]


def test_a_loss_that_never_falls_is_said(model):
    trainer = trainer_of(model, rate=1.0)
    with pytest.raises(ValueError, match="the loss must fall at some rate, got losses=\\[6.46"):
        find_learning_rate(trainer, lowest=1e-20, highest=1e-18, steps=10)


@pytest.mark.parametrize(
    ("lowest", "highest", "steps", "expected"),
    [
        (0.0, 1.0, 10, "got lowest=0.0, highest=1.0, steps=10;"),
        (1.0, 1.0, 10, "got lowest=1.0, highest=1.0, steps=10;"),
        (0.1, math.inf, 10, "got lowest=0.1, highest=inf, steps=10;"),
        (0.1, 1.0, 9, "got lowest=0.1, highest=1.0, steps=9;"),
        (0.1, 1.0, 0, "steps must be an integer of at least 1, got steps=0;"),
    ],
)
def test_bad_values_are_refused(model, lowest, highest, steps, expected):
    with pytest.raises(ValueError, match=f"find_learning_rate: .*{expected}"):
        find_learning_rate(trainer_of(model, rate=1.0), lowest=lowest, highest=highest, steps=steps)


def test_sharded_parameters_are_refused(model):
    class Sharding:
        rank, world_size, device = 0, 1, torch.device("cpu")

        def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
            return module

    trainer = replace(trainer_of(model, rate=1.0), parallelism=Sharding())
    with pytest.raises(ValueError, match="whole in each process, got parallelism='Sharding';"):
        find_learning_rate(trainer, lowest=0.1, highest=1.0, steps=10)
