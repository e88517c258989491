"""The factors of every schedule, by value."""

import math

import pytest

from memtx.train import (
    DelayedCosine,
    DelayedLinear,
    Schedule,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)

QUARTER = 0.5 * (1.0 + math.cos(math.pi / 4))  # a half cosine, a quarter of the way down
# Each schedule with the factors that it must have at some steps.
VALUES = [
    (
        WarmupCosine(warmup_steps=10, total_steps=110, floor=0.1),
        {1: 0.1, 5: 0.5, 10: 1.0, 35: 0.1 + 0.9 * QUARTER, 60: 0.55, 110: 0.1, 500: 0.1},
    ),
    (
        WarmupLinear(warmup_steps=10, total_steps=110, floor=0.2),
        {1: 0.1, 10: 1.0, 35: 0.8, 60: 0.6, 110: 0.2, 500: 0.2},
    ),
    (WarmupConstant(warmup_steps=4), {1: 0.25, 3: 0.75, 4: 1.0, 5: 1.0, 10**9: 1.0}),
    (
        WarmupStableDecay(warmup_steps=10, decay_steps=20, total_steps=110, floor=0.1),
        {5: 0.5, 10: 1.0, 50: 1.0, 90: 1.0, 95: 0.55, 110: 0.1, 500: 0.1},
    ),
    (
        DelayedCosine(warmup_steps=10, delay_steps=20, total_steps=110, floor=0.0),
        {5: 0.5, 10: 1.0, 30: 1.0, 50: QUARTER, 70: 0.5, 110: 0.0, 500: 0.0},
    ),
    (
        DelayedLinear(warmup_steps=10, delay_steps=20, total_steps=110, floor=0.5),
        {5: 0.5, 10: 1.0, 30: 1.0, 50: 0.875, 70: 0.75, 110: 0.5, 500: 0.5},
    ),
]
named = pytest.mark.parametrize(
    ("schedule", "values"), VALUES, ids=[type(schedule).__name__ for schedule, _ in VALUES]
)


@named
def test_factors_are_these(schedule, values):
    assert {step: schedule.factor(step) for step in values} == pytest.approx(values)


@named
def test_it_rises_and_then_never_rises_again(schedule, values):
    factors = [schedule.factor(step) for step in range(1, 121)]
    top = schedule.warmup_steps - 1
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert max(factors) == 1.0


@named
def test_it_says_how_long_it_is(schedule, values):
    assert isinstance(schedule, Schedule)
    assert schedule.length == getattr(schedule, "total_steps", None)


@pytest.mark.parametrize(
    "kind", [WarmupCosine, WarmupLinear, WarmupStableDecay, DelayedCosine, DelayedLinear]
)
def test_without_warmup_the_first_step_counts_almost_whole(kind):
    parts = {WarmupStableDecay: {"decay_steps": 9}, DelayedCosine: {"delay_steps": 9}}
    parts[DelayedLinear] = parts[DelayedCosine]
    schedule = kind(warmup_steps=0, total_steps=100, floor=0.0, **parts.get(kind, {}))
    assert schedule.factor(1) == pytest.approx(1.0, abs=0.011)
    assert schedule.factor(100) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", [WarmupCosine, WarmupLinear])
def test_a_floor_of_one_is_a_constant(kind):
    schedule = kind(warmup_steps=0, total_steps=3, floor=1.0)
    assert [schedule.factor(step) for step in (1, 2, 3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [WarmupCosine, WarmupLinear])
@pytest.mark.parametrize(
    ("warmup_steps", "total_steps", "floor"),
    [(5, 5, 0.0), (6, 5, 0.0), (-1, 5, 0.0), (0, 0, 0.0), (0, 5, 1.1), (0, 5, -0.1)],
)
def test_bad_values_are_refused(kind, warmup_steps, total_steps, floor):
    expected = f"got warmup_steps={warmup_steps}, total_steps={total_steps}, floor={floor};"
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{expected}"):
        kind(warmup_steps=warmup_steps, total_steps=total_steps, floor=floor)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="WarmupStableDecay: .*got warmup_steps=3, decay_steps=7,"):
        WarmupStableDecay(warmup_steps=3, decay_steps=7, total_steps=10, floor=0.0)
    with pytest.raises(ValueError, match="decay_steps must be at least 1, got decay_steps=0;"):
        WarmupStableDecay(warmup_steps=3, decay_steps=0, total_steps=10, floor=0.0)
    for kind in (DelayedCosine, DelayedLinear):
        with pytest.raises(ValueError, match="got warmup_steps=3, delay_steps=-1, total_steps=10,"):
            kind(warmup_steps=3, delay_steps=-1, total_steps=10, floor=0.0)
    with pytest.raises(ValueError, match="WarmupConstant: .*got warmup_steps=-1;"):
        WarmupConstant(warmup_steps=-1)
