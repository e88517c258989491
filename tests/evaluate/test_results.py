"""Values with intervals, as JSON and as tables, and over seeds."""

import json
import math

import pytest
import torch

from memtx.evaluate import (
    Confidence,
    EvaluationResult,
    Metric,
    over_seeds,
    recall,
    table,
)
from tests.evaluate import models
from tests.train import tiny

CONFIDENCE = Confidence(level=0.95, resamples=400, seed=0)


@pytest.mark.parametrize(
    ("hits", "items", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_as_published(hits, items, low, high):
    found = CONFIDENCE.share([True] * hits + [False] * (items - hits))
    assert found.value == hits / items
    assert found.interval.method == "wilson"
    assert (round(found.interval.low, 4), round(found.interval.high, 4)) == (low, high)


def test_bootstrap_intervals_hold_the_mean_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(200):
        values = torch.randn(40, generator=generator).tolist()
        interval = Confidence(level=0.9, resamples=200, seed=0).mean(values).interval
        held += interval.low <= 0.0 <= interval.high
    assert 0.82 < held / 200 < 0.96


def test_bootstrap_is_repeatable_and_weighs_items():
    totals, counts = [1.0, 9.0, 2.0], [1.0, 3.0, 2.0]
    found = CONFIDENCE.ratio(totals, counts, of=math.exp)
    assert found == CONFIDENCE.ratio(totals, counts, of=math.exp)
    assert found.value == pytest.approx(math.exp(2.0))
    assert found.interval.method == "bootstrap"
    assert math.e <= found.interval.low < found.value < found.interval.high <= math.exp(3.0)
    other = Confidence(level=0.95, resamples=400, seed=1).mean([0.3, 0.9, 0.1, 0.5])
    assert other != CONFIDENCE.mean([0.3, 0.9, 0.1, 0.5])


def test_a_mean_of_flags_is_a_share():
    assert CONFIDENCE.mean([1.0, 0.0, 1.0]) == CONFIDENCE.share([True, False, True])


def result(seed, value):
    metrics = {
        "recall": CONFIDENCE.share([True] * value + [False] * (10 - value)),
        "loss": Metric(value=float(value), num_items=1, interval=None),
    }
    return EvaluationResult(name="facts", metrics=metrics, seed=seed, details={"base": "tiny"})


def test_json_and_table():
    one = result(0, 9)
    held = json.loads(one.to_json())
    assert held["metrics"]["recall"]["value"] == 0.9
    assert held["metrics"]["recall"]["interval"]["method"] == "wilson"
    assert held["seed"] == 0
    assert EvaluationResult.from_json(one.to_json()) == one
    lines = table([one, result(None, 3)]).split("\n")
    assert len(lines) == 6
    assert lines[2] == "| facts | 0 | recall | 0.9000 | 0.5958 to 0.9821 (wilson) | 10 |"
    assert lines[5] == "| facts |  | loss | 3.0000 |  | 1 |"


def test_several_seeds():
    summary = over_seeds([result(0, 9), result(1, 10), result(2, 8)])
    assert summary.seeds == [0, 1, 2]
    held = json.loads(summary.to_json())["metrics"]["recall"]
    assert held["values"] == [0.9, 1.0, 0.8]
    assert held["mean"] == pytest.approx(0.9)
    assert held["deviation"] == pytest.approx(0.1)
    assert "| facts | 0, 1, 2 | recall | 0.9000 | 0.1000 | 0.8000 | 1.0000 |" in summary.table()
    alone = over_seeds([result(4, 5)])
    assert alone.metrics["recall"].deviation is None
    assert "| facts | 4 | recall | 0.5000 |  | 0.5000 | 0.5000 |" in alone.table()


def test_recall_has_an_interval():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    known = recall(model=models.bare(), tokenizer=tokenizer, facts=tiny.FACTS, batch_size=5)
    metric = known.metrics(CONFIDENCE)["recall"]
    assert (metric.value, metric.num_items) == (known.num_recalled / 5, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CONFIDENCE.share([]), "Confidence: a value must .* got items=0;"),
        (
            lambda: Confidence(level=95.0, resamples=1, seed=0),
            "Confidence: level must lie between 0 and 1, got level=95.0;",
        ),
        (lambda: Confidence(level=0.9, resamples=0, seed=0), "got resamples=0;"),
        (
            lambda: Metric(value=math.inf, num_items=3, interval=None),
            "Metric: a value must be finite, got value=inf, num_items=3;",
        ),
        (
            lambda: EvaluationResult(name="a", metrics={}, seed=0, details={"a": torch.float32}),
            "EvaluationResult: details must be what JSON can hold, got details=.*float32",
        ),
        (
            lambda: over_seeds([result(0, 1), result(0, 2)]),
            r"over_seeds: results must .* got names=\['facts'\], seeds=\[0, 0\];",
        ),
        (lambda: over_seeds([result(0, 1), result(None, 2)]), r"seeds=\[0, None\];"),
        (lambda: over_seeds([]), r"got names=\[\], seeds=\[\];"),
    ],
)
def test_what_makes_no_result_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
