"""Plots are drawn from records, and the same records give the same picture."""

import pytest

from benchmarks.performance_plots import PLOTS, draw, picture
from benchmarks.plotting import Lines, counted

KERNELS = {"matrix products": 2.0, "idle": 1.0}
RECORDS = {
    "step_profile": [
        {"case": case, "variant": "v", "milliseconds": 3.0, "floor_milliseconds": 1.0}
        | {"kernels": KERNELS}
        for case in ("371M step", "371M generate")
    ],
    "adapter_step": [{"case": "c", "variant": "memtx", "milliseconds": 1.0, "peak_gib": 2.0}],
    "routed_read": [
        {"case": "by token 16384, 4 of 4096 x 64 joint bfloat16", "variant": "memtx"}
        | {"milliseconds": 1.0, "peak_gib": 2.0}
    ],
    "generation": [{"case": "batch 1", "variant": "base", "milliseconds": 1.0}],
    "bank_size": [
        {"case": f"371M step batch 16{routing} compiled", "variant": variant}
        | {
            "num_memory_tokens": size,
            "milliseconds": 9.0,
            "peak_gib": 2.0,
            "update_milliseconds": 1,
        }
        for routing, variant, size in (
            ("", "control", None),
            (" sequence", "dense-adamw", 2**14),
            (" sequence", "dense-adamw", 2**20),
        )
    ],
}
RECORDS["routed_read_sweep"] = [
    {"case": f"{axis}: c", "axis": axis, "at": at, "variant": variant, "peak_gib": None}
    | {"milliseconds": time}
    for axis in ("top-k", "length", "bank")
    for variant, at, time in (("memtx", 64, 1.0), ("memtx", 128, 2.0), ("dense", 64, None))
]
RECORDS["routed_read_sweep_cpu"] = RECORDS["routed_read_sweep"]


def records_of(name):
    return {"records": RECORDS[name]}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_the_same_every_time(name, tmp_path):
    plot = picture(name, records_of)
    for number in (1, 2):
        draw(plot, tmp_path / f"{number}.png")
    first, second = ((tmp_path / f"{number}.png").read_bytes() for number in (1, 2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert plot.digest.encode() in first


def test_what_was_not_measured_is_not_drawn():
    assert picture("adapter", lambda _: None) is None
    assert picture("generation", lambda _: {"records": []}) is None
    failed = [{"case": "c", "variant": "v", "milliseconds": None}]
    assert picture("generation", lambda _: {"records": failed}) is None


def test_banks_are_lines_and_the_control_a_level():
    plot = picture("bank-size", records_of)
    step, update, memory = plot.panels
    assert isinstance(step, Lines)
    assert step.series == {"dense-adamw": [(2**14, 9.0), (2**20, 9.0)]}
    assert step.levels == {"control": 9.0}
    assert (update.levels, memory.levels) == ({}, {"control": 2.0})


def test_points_that_failed_are_left_out():
    plot = picture("sweep", records_of)
    assert [panel.series for panel in plot.panels] == [{"memtx": [(64, 1.0), (128, 2.0)]}] * 3


def test_another_number_is_another_digest():
    changed = {**RECORDS["generation"][0], "milliseconds": 1.5}
    other = picture("generation", lambda _: {"records": [changed]})
    assert other.digest != picture("generation", records_of).digest


def test_counts_are_short():
    assert [counted(x) for x in (64, 1_024, 2**20, 1_000)] == ["64", "1Ki", "1Mi", "1000"]
