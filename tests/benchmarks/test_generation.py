"""The benchmark of generation runs on a CPU and writes records of the agreed form."""

import json
import sys

import pytest
import torch

from benchmarks import generation as benchmark

NAMES = ["base", "memtx", "memtx-frozen", "memtx-frozen-8bit", "memtx-bf16-frozen"]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--size", "tiny", "--cpu", "--batches", "2", "--output", str(folder)]
        patch.setattr(sys, "argv", ["generation", *arguments, "--variants", *NAMES])
        assert benchmark.main() == 0
    return json.loads((folder / "generation.json").read_text(encoding="utf-8"))


def test_the_base_is_measured_before_and_after(content):
    assert {"machine", "versions", "date", "records"} == set(content)
    names = [record["variant"] for record in content["records"]]
    assert names == [*NAMES, "base-again"]
    assert {r["case"] for r in content["records"]} == {"qwen2-tiny-shape generate batch 2 prompt 8"}


def test_numbers_and_ratios(content):
    base, *others, again = content["records"]
    mean = (base["milliseconds"] + again["milliseconds"]) / 2
    for record in content["records"]:
        assert record["milliseconds_min"] <= record["milliseconds"] <= record["milliseconds_max"]
        assert record["peak_gib"] is None  # a CPU does not count it
        assert ("ratio" in record) == (record in others)
    for record in others:
        assert record["ratio"] == pytest.approx(record["milliseconds"] / mean)


def test_every_variant_generates_what_the_plain_memory_does():
    """In float32, where there is nothing to round: variants differ in speed alone."""
    setting = benchmark.setting_of("tiny", torch.device("cpu"))
    ids = torch.randint(setting.config.vocab_size, (2, setting.prompt))
    answers = {}
    for name in NAMES:
        with benchmark.prepared(name, setting) as model, torch.no_grad():
            answers[name] = model(input_ids=ids).logits.float()
    wanted = answers["memtx"]
    assert torch.equal(answers["memtx-frozen"], wanted)
    assert (answers["base"] - wanted).norm() > 0.01 * wanted.norm()
    for name in ("memtx-frozen-8bit", "memtx-bf16-frozen"):
        assert (answers[name] - wanted).norm() < 0.02 * wanted.norm()


def test_the_full_case_is_the_shape_of_the_goal():
    setting = benchmark.setting_of("1.5b", torch.device("cpu"))
    assert setting.name == "qwen2.5-1.5b-shape"
    assert (setting.config.num_hidden_layers, setting.config.hidden_size) == (28, 1_536)
    assert (setting.prompt, setting.new_tokens) == (128, 128)


def test_an_error_is_a_record():
    setting = benchmark.setting_of("tiny", torch.device("cpu"))
    record = benchmark.run("no such variant", batch=1, setting=setting)
    assert record["error"] == "KeyError: 'no such variant'"
    assert "no such variant" in benchmark.table([record])
