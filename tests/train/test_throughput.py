"""What a run says of its machine: FLOPs, their share of the peak, and memory."""

import math
from dataclasses import replace

import pytest
import torch

from memtx.evaluate import training_flops
from memtx.train import Callback, PeakMemory, Utilisation, known_peak
from memtx.train.throughput import PEAKS, resident_gib
from tests.train import tiny


def test_a_run_logs_flops_utilisation_and_peak_memory():
    model = tiny.adapter(model=tiny.base(seed=0))
    per_token = training_flops(model=model, batch=2, length=12).per_token
    callbacks = [Utilisation(flops_per_token=per_token, peak_flops=1e12), PeakMemory()]
    assert all(isinstance(each, Callback) for each in callbacks)
    records = replace(tiny.trainer(model=model, steps=2), callbacks=callbacks).run()
    for record in records:
        assert record["flops_per_second"] == per_token * record["tokens_per_second"]
        assert record["mfu"] == record["flops_per_second"] / 1e12
        assert 0.01 < record["peak_memory_gib"] < 64.0
    assert [each.state_dict() for each in callbacks] == [{}, {}]


def test_every_process_has_a_peak_of_its_own():
    record = {"tokens_per_second": 100.0}
    Utilisation(flops_per_token=10.0, peak_flops=1e3).rate(record, world_size=4)
    assert record == {"tokens_per_second": 100.0, "flops_per_second": 1e3, "mfu": 0.25}


def test_without_a_known_peak_there_is_no_share():
    record = {"tokens_per_second": 100.0}
    Utilisation(flops_per_token=10.0, peak_flops=None).rate(record, world_size=1)
    assert record == {"tokens_per_second": 100.0, "flops_per_second": 1e3}


def test_resident_memory_grows_with_what_is_touched():
    before = resident_gib()
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert resident_gib() - before > 0.1
    assert held[0] == 1.0


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989.4e12),
        ("NVIDIA H100 80GB HBM3", torch.float16, 989.4e12),
        ("NVIDIA H200", torch.float32, 67e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA H200", torch.float64, None),
        ("NVIDIA H200 MIG 1g.18gb", torch.bfloat16, None),
        ("Some GPU", torch.bfloat16, None),
    ],
)
def test_peaks_are_known_by_name(name, dtype, peak):
    assert known_peak(device_name=name, dtype=dtype) == peak


def test_half_precision_is_the_faster():
    assert all(single < half for single, half in PEAKS.values())


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_numbers_that_are_not_positive_are_refused(value):
    message = "Utilisation: flops_per_token must be positive and finite, got flops_per_token="
    with pytest.raises(ValueError, match=f"{message}{value};"):
        Utilisation(flops_per_token=value, peak_flops=None)
    message = "Utilisation: peak_flops must be positive and finite, got peak_flops="
    with pytest.raises(ValueError, match=f"{message}{value};"):
        Utilisation(flops_per_token=1.0, peak_flops=value)
