"""Arithmetic of the forward, and the scale of the loss."""

import math
from dataclasses import replace

import pytest
import torch

from memtx.train import AdamW, BFloat16Autocast, Float16Autocast, FullPrecision, Precision
from tests.train import tiny

CPU = torch.device("cpu")


def float16(*, scale: float, interval: int) -> Float16Autocast:
    return Float16Autocast(
        initial_scale=scale, growth_factor=2.0, backoff_factor=0.5, growth_interval=interval
    )


def product(precision) -> torch.Tensor:
    with precision.context(CPU):
        return torch.ones(1, 1) @ torch.ones(1, 1)


@pytest.mark.parametrize(
    ("precision", "dtype", "scales"),
    [
        (FullPrecision(), torch.float32, False),
        (BFloat16Autocast(), torch.bfloat16, False),
        (float16(scale=8.0, interval=10), torch.float16, True),
    ],
)
def test_the_dtype_is_for_the_forward_only(precision, dtype, scales):
    assert isinstance(precision, Precision)
    assert product(precision).dtype == dtype
    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
    assert precision.scaler(CPU).is_enabled() == scales


def test_a_scaled_loss_changes_no_number_of_the_run():
    # A scale of 1 and one of 1024 differ in what underflows only; both follow float32.
    runs = {}
    for scale in (1.0, 1024.0):
        model = tiny.adapter(model=tiny.base(seed=0))
        trainer = tiny.trainer(model=model, steps=20)
        runs[scale] = replace(trainer, precision=float16(scale=scale, interval=1000)).run()
        assert {p.dtype for p in model.memory_parameters()} == {torch.float32}
        assert [record["loss_scale"] for record in runs[scale]] == [scale] * 20
        assert not any(record["step_left_out"] for record in runs[scale])
    plain = tiny.trainer(model=tiny.adapter(model=tiny.base(seed=0)), steps=20).run()
    for key in ("loss", "gradient_norm"):
        first = [runs[scale][0][key] for scale in runs]
        assert first == pytest.approx([plain[0][key]] * 2, rel=2e-2)
    assert runs[1024.0][-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.1)
    assert plain[0]["loss"] != runs[1024.0][0]["loss"]


def test_the_gradient_is_clipped_after_the_scale_is_taken_out():
    # With a large eps Adam's first step is the gradient times rate / eps.
    for scale in (1.0, 4096.0):
        model = tiny.adapter(model=tiny.base(seed=0))
        before = tiny.memory_of(model)
        (record,) = replace(
            tiny.trainer(model=model, steps=1),
            precision=float16(scale=scale, interval=1000),
            optimizer=AdamW(betas=(0.9, 0.95), eps=1e4),
            clip_norm=1e-2,
        ).run()
        after = tiny.memory_of(model)
        moved = math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in after))
        assert record["gradient_norm"] > 0.1
        assert moved == pytest.approx(1e-2 * 1e-2 / 1e4, rel=2e-2)


def test_a_step_that_overflows_is_left_out_and_the_scale_shrinks():
    model = tiny.adapter(model=tiny.base(seed=0))
    before = tiny.memory_of(model)
    trainer = replace(
        tiny.trainer(model=model, steps=1), precision=float16(scale=2.0**60, interval=1)
    )
    (record,) = trainer.run()
    assert record["step_left_out"] == 1.0
    assert not math.isfinite(record["gradient_norm"])
    assert math.isfinite(record["loss"])
    assert tiny.same(tiny.memory_of(model), before)
    records = replace(
        tiny.trainer(model=model, steps=60), precision=float16(scale=2.0**60, interval=50)
    ).run()
    left_out = [record["step_left_out"] for record in records]
    first = left_out.index(0.0)
    assert left_out[:first] == [1.0] * first
    assert first > 1
    scales = [record["loss_scale"] for record in records]
    assert scales[: first + 1] == [2.0 ** (60 - step) for step in range(first + 1)]
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]


def test_a_gradient_that_overflows_unscaled_ends_the_run():
    model = tiny.adapter(model=tiny.base(seed=0))
    with torch.no_grad():
        model.banks[0].tokens.mul_(1e30)
        model.insertions[0].sublayers[0].sublayer.o_proj.weight.fill_(1e-34)
    before = tiny.memory_of(model)
    trainer = replace(tiny.trainer(model=model, steps=5), precision=float16(scale=1.0, interval=9))
    with pytest.raises(FloatingPointError, match="Trainer: .*finite.*loss_scale=1.0"):
        trainer.run()
    assert tiny.same(tiny.memory_of(model), before)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"initial_scale": 0.5}, "got initial_scale=0.5, growth_factor=2.0, backoff_factor=0.5;"),
        ({"growth_factor": 1.0}, "got initial_scale=4.0, growth_factor=1.0, backoff_factor=0.5;"),
        ({"backoff_factor": 1.0}, "got initial_scale=4.0, growth_factor=2.0, backoff_factor=1.0;"),
        ({"growth_interval": 0}, "growth_interval must .* got growth_interval=0;"),
    ],
)
def test_bad_values_are_refused(changes, expected):
    with pytest.raises(ValueError, match=f"Float16Autocast: .*{expected}"):
        replace(float16(scale=4.0, interval=3), **changes)
