"""The benchmark of growing banks: its cases, its records, and steps of every variant."""

import json
import sys

import pytest
import torch

from benchmarks import bank_size as benchmark
from factories.from_scratch import routed_a_tiny, vanilla_tiny
from memtx import RoutedMemoryCrossAttention
from memtx.train import BankRows

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    """The stacks of another factory, at a size for a CPU; a bank keeps that factory's size."""

    def reading(*, num_chapters, strategy):
        return routed_a_tiny()

    monkeypatch.setattr(benchmark, "reading", reading)
    monkeypatch.setattr(benchmark, "control", vanilla_tiny)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(monkeypatch, folder, arguments):
    given = ["bank_size", "--tiny", "--rows", "1", "--output", str(folder), *arguments]
    monkeypatch.setattr(sys, "argv", given)
    precision = torch.get_float32_matmul_precision()
    assert benchmark.main() == 0
    torch.set_float32_matmul_precision(precision)
    return json.loads((folder / "bank_size.json").read_text(encoding="utf-8"))["records"]


def test_records_of_steps_and_tokens_stand_in_one_file(tiny, monkeypatch, tmp_path):
    sizes = ["--sizes", "16384", "65536"]
    variants = ["--variants", *benchmark.VARIANTS]
    steps = run(monkeypatch, tmp_path, ["--work", "step", "--eager", *sizes, *variants])
    assert [(r["variant"], r["num_memory_tokens"]) for r in steps] == [
        ("control", None),
        *((name, size) for name in benchmark.VARIANTS for size in (16_384, 65_536)),
    ]
    both = run(monkeypatch, tmp_path, ["--work", "token", *sizes])
    assert both[: len(steps)] == steps
    tokens = both[len(steps) :]
    assert [(r["variant"], r["num_memory_tokens"]) for r in tokens] == [
        ("control", None),
        ("frozen", 16_384),
        ("frozen", 65_536),
    ]
    for record in both:
        assert record["milliseconds_min"] <= record["milliseconds"] <= record["milliseconds_max"]
        assert record["peak_gib"] is None  # a CPU does not count it
    for control, *banks in (steps, tokens):
        assert "ratio" not in control
        for least, larger in zip(banks[::2], banks[1::2], strict=True):
            assert least["ratio"] == 1.0
            assert larger["ratio"] == larger["milliseconds"] / least["milliseconds"]
            wanted = larger["milliseconds"] / control["milliseconds"]
            assert larger["ratio_to_control"] == wanted
    assert len(benchmark.table(both).splitlines()) == 1 + len(both)
    assert all(record["update_milliseconds"] < record["milliseconds"] for record in steps)


def test_sparse_variants_learn_row_by_row_and_others_do_not(tiny):
    model = routed_a_tiny()
    made = {name: benchmark.optimizer_of(model, name) for name in benchmark.VARIANTS}
    whole = benchmark.ParameterGroup(
        name="all", modules=[model], without=[], learning_rate=1.0, weight_decay=0.0
    )
    rows = BankRows(rows=benchmark.RULES["sparse-sgd"], rest=benchmark.ADAM, banks=model.banks)
    owned = type(rows.make([whole]))
    assert {name for name, each in made.items() if isinstance(each, owned)} == set(benchmark.RULES)
    assert len(made["frozen-bank"].param_groups) == 1
    assert len(made["dense-adamw"].param_groups) == 2


def test_banks_are_of_the_sizes_named():
    for size in (16_384, 1_048_576):
        for routing in benchmark.STRATEGIES:
            with torch.device("meta"):
                model = benchmark.Case(size=size, variant="frozen", routing=routing).compose()
            assert model.banks[0].num_memory_tokens == size
            readers = [p for p in model.modules() if isinstance(p, RoutedMemoryCrossAttention)]
            assert {(r.router.top_k, r.tokens_per_chapter) for r in readers} == {(64, 64)}
            strategies = {r.router.strategy for r in readers}
            assert strategies == {benchmark.STRATEGIES[routing]}


def test_an_error_is_a_record(monkeypatch):
    def fails(case, setting):
        raise MemoryError("too large")

    setting = benchmark.Setting(
        batch=1,
        length=1,
        warm_up=1,
        timed=1,
        prompt=1,
        new_tokens=1,
        left_out=0,
        rounds=1,
        compiled=False,
        device=CPU,
    )
    case = benchmark.Case(size=8_192, variant="frozen", routing="sequence")
    record = benchmark.run(fails, case, setting)
    assert record["error"] == "MemoryError: too large"
    assert "too large" in benchmark.table([record])
