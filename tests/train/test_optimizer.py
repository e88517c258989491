"""The optimizer that a value makes, and the schedule's factors."""

import math

import pytest
import torch
from torch import nn

from memtx.train import AdamW, ParameterGroup, WarmupCosine


def test_adamw_has_a_group_of_each_with_its_rates():
    first, second = nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
    groups = [
        ParameterGroup(name="a", modules=[first], without=[], learning_rate=1e-3, weight_decay=0.1),
        ParameterGroup(
            name="b", modules=[second], without=[], learning_rate=2e-4, weight_decay=0.0
        ),
    ]
    optimizer = AdamW(betas=(0.8, 0.95), eps=1e-6).make(groups)
    assert isinstance(optimizer, torch.optim.AdamW)
    held = optimizer.param_groups
    assert [[id(p) for p in each["params"]] for each in held] == [
        [id(first.weight), id(first.bias)],
        [id(second.weight)],
    ]
    assert [(each["lr"], each["weight_decay"]) for each in held] == [(1e-3, 0.1), (2e-4, 0.0)]
    assert {(each["betas"], each["eps"]) for each in held} == {((0.8, 0.95), 1e-6)}


def test_warmup_is_linear_and_then_a_half_cosine_falls_to_the_floor():
    schedule = WarmupCosine(warmup_steps=10, total_steps=110, floor=0.1)
    warmup = [schedule.factor(step) for step in (0, 1, 5, 10)]
    assert warmup == pytest.approx([0.0, 0.1, 0.5, 1.0])
    quarter = 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi / 4))
    falling = [schedule.factor(step) for step in (35, 60, 110)]
    assert falling == pytest.approx([quarter, 0.55, 0.1])
    factors = [schedule.factor(step) for step in range(10, 111)]
    assert factors == sorted(factors, reverse=True)
    assert schedule.factor(500) == pytest.approx(0.1)  # beyond its end it stays


def test_without_warmup_the_first_step_counts_almost_whole():
    schedule = WarmupCosine(warmup_steps=0, total_steps=100, floor=0.0)
    assert schedule.factor(1) == pytest.approx(1.0, abs=1e-3)
    assert schedule.factor(100) == pytest.approx(0.0)


def test_a_floor_of_one_is_a_constant():
    schedule = WarmupCosine(warmup_steps=0, total_steps=3, floor=1.0)
    assert [schedule.factor(step) for step in (1, 2, 3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("warmup_steps", "total_steps", "floor"),
    [(5, 5, 0.0), (6, 5, 0.0), (-1, 5, 0.0), (0, 0, 0.0), (0, 5, 1.1), (0, 5, -0.1)],
)
def test_bad_values_are_refused(warmup_steps, total_steps, floor):
    expected = f"got warmup_steps={warmup_steps}, total_steps={total_steps}, floor={floor};"
    with pytest.raises(ValueError, match=f"WarmupCosine: .*{expected}"):
        WarmupCosine(warmup_steps=warmup_steps, total_steps=total_steps, floor=floor)
