"""The profile of the main steps runs on a CPU, and its floors are counts that are known."""

import json
import sys

import pytest
import torch

from benchmarks import step_profile as benchmark
from benchmarks.adapter_profile import Step, operations
from benchmarks.adapter_step import tiny_setting
from benchmarks.floors import operations_of_step, read_by_token, update_bytes
from benchmarks.generation import prepared, setting_of
from benchmarks.kernels import FUSED, OTHER, by_kind, kind_of, with_idle
from benchmarks.mixture_of_chapters import tiny_setting as tiny_stacks
from factories.from_scratch import routed_a_tiny, vanilla_tiny
from memtx.adapters import compilation
from memtx.generate import InDtype, freeze_for_inference

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_compiled():
    """Compiling takes minutes here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda called: called)
        compilation._compiled.cache_clear()
        yield
    compilation._compiled.cache_clear()


def run(monkeypatch, folder, arguments):
    given = ["step_profile", "--tiny", "--output", str(folder), *arguments]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    precision = torch.get_float32_matmul_precision()
    code = benchmark.main()
    torch.set_float32_matmul_precision(precision)
    content = json.loads((folder / "step_profile.json").read_text(encoding="utf-8"))
    return code, content["records"]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("results")
        code, found = run(patch, folder, ["--seconds", "100", "--batches", "1", "2"])
    assert code == 0
    return found


def test_every_part_is_a_record(records):
    wanted = [
        (part, name, rows)
        for part, (_, names) in benchmark.PARTS.items()
        for name in names
        for rows in ([1, 2] if "token" in part else [2])
    ]
    assert [(r["part"], r["variant"], r["rows"]) for r in records] == wanted


def test_kernels_and_floor_are_parts_of_a_whole(records):
    for record in records:
        assert record["milliseconds"] > 0.0
        assert record["floor_milliseconds"] == pytest.approx(sum(record["floor"].values()))
        kernels = record["kernels"]
        assert kernels["matrix products"] > 0.0
        assert kernels["attention"] > 0.0
        busy = sum(time for kind, time in kernels.items() if kind != "idle")
        assert busy + kernels["idle"] == pytest.approx(max(busy, record["milliseconds"]))


def test_what_fails_is_a_record_and_what_was_not_begun_is_none(monkeypatch, tmp_path):
    def fails(name, batch, setting):
        raise MemoryError("too large")

    parts = {**benchmark.PARTS, "token-base": (fails, ["base"])}
    monkeypatch.setattr(benchmark, "PARTS", parts)
    given = ["--parts", "token-base", "--seconds", "100"]
    code, found = run(monkeypatch, tmp_path, given)
    assert (code, found[0]["error"]) == (1, "MemoryError: too large")
    assert "too large" in benchmark.shown(found[0])
    code, kept = run(monkeypatch, tmp_path, [*given, "--batches", "3"])
    assert [r["rows"] for r in kept] == [1, 3]
    code, _ = run(monkeypatch, tmp_path, [*given[:2], "--seconds", "0"])
    assert code == 0


def test_operations_are_those_of_the_other_profile():
    """Which counts by hand, but an attention's backward with the products made twice."""
    setting = tiny_setting(CPU)
    adapter = Step(setting=setting, compiled=False).adapter
    by_hand = sum(
        count
        for part, count in operations(setting=setting, adapter=adapter).items()
        if part != "base forward alone"
    )
    size = {"batch": setting.batch, "length": setting.length}
    assert operations_of_step(adapter, **size) == pytest.approx(by_hand, rel=0.05)


def test_an_update_moves_seven_numbers_for_each_that_is_trained():
    model = vanilla_tiny()
    assert update_bytes(model) == 28.0 * sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    assert update_bytes(model) == 0.0


def test_a_token_reads_each_weight_its_chapters_and_its_text():
    model = routed_a_tiny()
    with pytest.raises(ValueError, match="frozen"):
        read_by_token(model, batch=1, text=8)
    reader = next(p for p in model.modules() if hasattr(p, "router"))
    chosen = reader.router.num_shared_chapters + reader.router.top_k
    readers = sum(hasattr(p, "router") for p in model.modules())
    layers = sum(type(p).__name__ == "SelfAttention" for p in model.modules())
    with freeze_for_inference(model, storage=InDtype(dtype=torch.bfloat16)):
        read = read_by_token(model, batch=1, text=8)
        many = read_by_token(model, batch=10_000, text=8)
    page = reader.tokens_per_chapter * reader.k_proj.out_features * 2 * 2
    assert read["memory"] == readers * chosen * page
    assert many["memory"] == readers * reader.router.num_chapters * page
    assert many["weights"] == read["weights"]
    attention = next(p for p in model.modules() if type(p).__name__ == "SelfAttention")
    assert read["text"] == layers * 8 * 2 * attention.k_proj.out_features * 4
    left_out = sum(p.numel() for p in model.banks.parameters())
    left_out += readers * (2 * reader.k_proj.weight.numel() + reader.router.scorer.weight.numel())
    assert read["weights"] == 4 * (sum(p.numel() for p in model.parameters()) - left_out)


def test_a_dense_memory_is_read_whole_and_once_for_all_rows():
    setting = setting_of("tiny", CPU)
    with prepared("memtx-bf16-frozen", setting) as model:
        one, two = (read_by_token(model, batch=batch, text=4) for batch in (1, 2))
        kept = sum(p.frozen.nbytes for p in model.modules() if getattr(p, "frozen", None))
    assert one["memory"] == two["memory"] == kept > 0
    assert two["text"] == 2 * one["text"] > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm>", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("triton_tem_fused_mm_3", "matrix products"),
        ("triton_tem_fused_flex_attention_1", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("triton_poi_fused__to_copy_add_mul_7", FUSED),
        ("triton_red_fused__log_softmax_nll_loss_4", FUSED),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("void at::native::embedding_backward_feature_kernel", "look-ups and sorting"),
        ("at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<MulFunctor>", OTHER),
    ],
)
def test_kernels_are_told_by_their_names(name, kind):
    assert kind_of(name) == kind


def test_kinds_add_up():
    times = [("aten::mm", 1.0), ("aten::mul", 3.0), ("aten::bmm", 0.5), ("aten::view", 0.0)]
    found = by_kind(times)
    assert list(found.items()) == [(OTHER, 3.0), ("matrix products", 1.5)]
    assert with_idle(found, 5.0)["idle"] == 0.5
    assert with_idle(found, 4.0)["idle"] == 0.0


def test_the_step_is_that_of_the_benchmark():
    step = benchmark.ChaptersStep(case=tiny_stacks(batch=1, device=CPU), name="memtx-sequence")
    before = [parameter.clone() for parameter in step.model.parameters()]
    step.whole()
    pairs = zip(before, step.model.parameters(), strict=True)
    assert sum(not torch.equal(old, new) for old, new in pairs) > len(before) // 2
    assert all(parameter.grad is None for parameter in step.model.parameters())
