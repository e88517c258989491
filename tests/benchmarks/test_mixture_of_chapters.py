"""The benchmark of the mixture of chapters runs on a CPU and writes records of the agreed form.

The compiled variants are left out: compiling takes a minute here.
"""

import json
import sys

import pytest
import torch

from benchmarks import mixture_of_chapters as benchmark
from memtx.evaluate import forward_flops
from memtx.memory import routed_attention

EAGER = ["control-eager", "memtx-sequence-eager", "memtx-rolling-128-eager"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(routed_attention, "MANY_LAID", routed_attention.MANY_LAID)
        arguments = ["--tiny", "--rows", "1", "2", "--output", str(folder), "--many-laid", "0"]
        arguments += ["--rounds", "2", "--variants", *EAGER]
        patch.setattr(sys, "argv", ["mixture_of_chapters", *arguments])
        precision = torch.get_float32_matmul_precision()
        assert benchmark.main() == 0
        torch.set_float32_matmul_precision(precision)
    return json.loads((folder / "mixture_of_chapters.json").read_text(encoding="utf-8"))


def test_file_says_where_and_when(content):
    assert set(content) == {"machine", "versions", "date", "records"}
    assert {"python", "torch"} <= set(content["versions"])


def test_every_case_has_every_variant(content):
    wanted = [(f"tiny stacks batch {rows} x 32 bf16", name) for rows in (1, 2) for name in EAGER]
    assert [(r["case"], r["variant"]) for r in content["records"]] == wanted


def test_what_ran_has_numbers(content):
    for record in content["records"]:
        assert record["milliseconds_min"] <= record["milliseconds"] <= record["milliseconds_max"]
        assert record["tokens_per_second"] > 0.0
        assert record["tflops"] > 0.0
        assert record["peak_gib"] is None  # a CPU does not count it
        assert (record["steps"], record["many_laid"]) == (4, 0)


def test_memory_is_set_over_its_control(content):
    for control, *memories in (content["records"][:3], content["records"][3:]):
        for memory in memories:
            assert memory["ratio"] == memory["milliseconds"] / control["milliseconds"]
            # On so few rows the projected bank weighs most.
            assert memory["ratio_of_flops"] > 1.0
        assert "ratio" not in control


def test_an_error_is_a_record():
    setting = benchmark.tiny_setting(batch=1, device=CPU)
    run = benchmark.run_once(setting=setting, name="no such stack-eager")
    assert run.error == "KeyError: 'no such stack'"
    record = benchmark.record_of(setting=setting, name="memtx", runs=[run])
    lines = benchmark.table([record]).splitlines()
    assert len(lines) == 2
    assert "no such stack" in lines[1]


def test_the_table_has_a_line_for_each_record(content):
    assert len(benchmark.table(content["records"]).splitlines()) == 7


def test_the_full_case_is_the_stack_of_the_paper():
    setting = benchmark.full_setting(batch=16, device=CPU)
    assert setting.case == "mixture-of-chapters 371M batch 16 x 1024 bf16"
    counts = {}
    for name, compose in setting.stacks.items():
        with torch.device("meta"):
            model = compose()
        counts[name] = sum(p.numel() for p in model.parameters())
        assert forward_flops(model=model, batch=16, length=setting.length).num_tokens == 16_384
    memory = dict.fromkeys(benchmark.STACKS[1:], 371_273_472)
    assert counts == {"control": 202_937_088} | memory
