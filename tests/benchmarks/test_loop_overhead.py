"""The benchmark of the loop, on a stack of a million parameters for a few steps."""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import loop_overhead
from tests.train import tiny

SETTING = loop_overhead.Setting(rows=2, length=8, warmup=1, steps=3, rounds=1, limit_percent=5.0)


def composed(loggers):
    model = tiny.adapter(model=tiny.base(seed=0))
    return replace(tiny.trainer(model=model, steps=100), loggers=loggers)


def test_a_record_says_what_the_loop_takes_beside_the_bare_one():
    found = loop_overhead.measure("tiny", compose=partial(composed, []), setting=SETTING)
    assert [record["variant"] for record in found] == ["memtx", "bare"]
    memtx, bare = found
    assert memtx["ratio"] == pytest.approx(memtx["milliseconds"] / bare["milliseconds"])
    assert memtx["overhead_percent"] == pytest.approx(100.0 * (1.0 - 1.0 / memtx["ratio"]))
    assert 0.0 < memtx["outside_percent"] < 100.0
    assert "tiny, 30M, 2 x 8 tokens" in loop_overhead.table(found)


def test_a_slow_logger_is_seen_by_both_measures():
    class Slow:
        def begin(self, step: int) -> None:
            """Nothing is opened."""

        def log(self, record: dict[str, float]) -> None:
            time.sleep(0.2)

        def close(self) -> None:
            """Nothing is open."""

    compose = partial(composed, [Slow()])
    memtx, *_ = loop_overhead.measure("tiny", compose=compose, setting=SETTING)
    assert memtx["overhead_percent"] > 60.0
    assert memtx["outside_percent"] > 60.0


def test_both_loops_take_the_same_steps():
    # What is timed must be the same work: the weights after it agree.
    left = []
    for way in (loop_overhead.by_trainer, loop_overhead.by_hand):
        trainer = composed([])
        torch.manual_seed(0)
        way(trainer, setting=SETTING)
        left.append(tiny.memory_of(trainer.objective.model))
    for name, tensor in left[0].items():
        torch.testing.assert_close(tensor, left[1][name], rtol=1e-5, atol=1e-6)
