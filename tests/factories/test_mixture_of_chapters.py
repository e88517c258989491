"""The 371M mixture of chapters and its control, on the meta device: none of it takes memory."""

import pytest
import torch

from factories.mixture_of_chapters import control, reading, with_memory, with_memory_by_sequence
from memtx import (
    JointSoftmax,
    LoadBalanceLoss,
    MemoryTransformer,
    RollingRouting,
    RoutedMemoryCrossAttention,
    RouterZLoss,
    SelfAttention,
    SequenceRouting,
    StandardMemoryBank,
    SwiGLU,
    Zeros,
    build,
    describe,
    to_source,
)
from memtx.evaluate import forward_flops

COMPOSITIONS = {
    "with_memory": with_memory,
    "with_memory_by_sequence": with_memory_by_sequence,
    "control": control,
}
PARAMETERS = {
    "with_memory": 371_273_472,
    "with_memory_by_sequence": 371_273_472,
    "control": 202_937_088,
}


@pytest.fixture(scope="module", params=COMPOSITIONS)
def composed(request) -> tuple[str, MemoryTransformer]:
    with torch.device("meta"):
        return request.param, COMPOSITIONS[request.param]()


@pytest.fixture(scope="module")
def memory() -> MemoryTransformer:
    with torch.device("meta"):
        return with_memory()


def sublayers_of(model) -> list[list[type]]:
    return [[type(each.sublayer) for each in layer.sublayers] for layer in model.layers]


def readers_of(model) -> list[RoutedMemoryCrossAttention]:
    return [part for part in model.modules() if isinstance(part, RoutedMemoryCrossAttention)]


def test_the_parameters_are_those_of_the_paper(composed):
    name, model = composed
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert all(p.is_meta for p in model.parameters())


def test_where_the_parameters_are(memory):
    attention, mlp, norms = 768 * (2 * 768 + 2 * 256), 3 * 768 * 2_304, 2 * 768
    read = 768 + 4 * 768**2 + 768 * 4_096
    whole = 49_152 * 768 + 262_208 * 768 + 16 * (attention + mlp + norms) + 4 * read + 768
    assert whole == PARAMETERS["with_memory"]


def test_memory_is_read_between_attention_and_mlp_in_layers_2_6_10_and_14(memory):
    plain = [SelfAttention, SwiGLU]
    reading = [SelfAttention, RoutedMemoryCrossAttention, SwiGLU]
    wanted = [reading if layer in (2, 6, 10, 14) else plain for layer in range(16)]
    assert sublayers_of(memory) == wanted


def test_the_control_has_24_layers_and_no_memory():
    with torch.device("meta"):
        model = control()
    assert sublayers_of(model) == [[SelfAttention, SwiGLU]] * 24
    assert len(model.banks) == 0


def test_one_bank_is_read_by_all(memory):
    (bank,) = memory.banks
    assert type(bank) is StandardMemoryBank
    assert (bank.num_memory_tokens, bank.dim) == (262_208, 768)
    assert len(readers_of(memory)) == 4
    assert all(reader.bank is bank for reader in readers_of(memory))
    assert all(reader.tokens_per_chapter == 64 for reader in readers_of(memory))


def test_every_read_has_the_values_of_the_paper(memory):
    for reader in readers_of(memory):
        router = reader.router
        assert (router.num_chapters, router.num_shared_chapters, router.top_k) == (4_097, 1, 64)
        assert router.routed_scale == 2.5
        assert router.losses == [LoadBalanceLoss(weight=0.01), RouterZLoss(weight=0.001)]
        assert router.strategy == RollingRouting(window=128)
        assert router.strategy.is_causal
        assert reader.mixing == JointSoftmax()
        assert (reader.num_heads, reader.num_kv_heads) == (12, 12)
        assert reader.o_proj.init == Zeros()
    assert len({id(reader.router) for reader in readers_of(memory)}) == 4


def test_the_source_s_routing_differs_in_nothing_else(memory):
    with torch.device("meta"):
        other = with_memory_by_sequence()
    for mine, theirs in zip(readers_of(memory), readers_of(other), strict=True):
        assert theirs.router.strategy == SequenceRouting()
        theirs.router.strategy = mine.router.strategy
    assert describe(other) == describe(memory)


def test_a_bank_grows_by_chapters_of_64():
    with torch.device("meta"):
        model = reading(num_chapters=16_384, strategy=SequenceRouting())
    assert model.banks[0].num_memory_tokens == 1_048_576
    assert {reader.router.scorer.out_features for reader in readers_of(model)} == {16_383}
    assert {reader.tokens_per_chapter for reader in readers_of(model)} == {64}


def test_attention_and_mlp_have_the_sizes_of_the_paper(composed):
    _, model = composed
    for part in model.modules():
        if isinstance(part, SelfAttention):
            assert (part.dim, part.num_heads, part.num_kv_heads) == (768, 12, 4)
            assert (part.rotary.head_dim, part.rotary.base) == (64, 100_000.0)
        if isinstance(part, SwiGLU):
            assert part.gate_proj.out_features == 2_304
    assert (model.embedding.vocab_size, model.embedding.dim) == (49_152, 768)
    assert model.head.embedding is model.embedding


def test_no_two_layers_share_a_part(composed):
    _, model = composed
    for kind in (SelfAttention, SwiGLU, RoutedMemoryCrossAttention):
        parts = [s.sublayer for layer in model.layers for s in layer.sublayers]
        found = [id(part) for part in parts if isinstance(part, kind)]
        assert len(found) == len(set(found))


def test_both_take_the_same_arithmetic_at_32_rows(memory):
    with torch.device("meta"):
        plain = control()

    def ratio(batch: int) -> float:
        flops = [forward_flops(model=each, batch=batch, length=1_024) for each in (memory, plain)]
        return flops[0].per_token / flops[1].per_token

    assert ratio(32) == pytest.approx(1.0, abs=0.02)
    assert ratio(16) == pytest.approx(1.16, abs=0.005)
    assert ratio(256) == pytest.approx(0.86, abs=0.005)


def test_spec_and_source_build_the_same(composed):
    name, model = composed
    with torch.device("meta"):
        rebuilt = build(describe(model))
        names: dict = {}
        exec(compile(to_source(model), name, "exec"), names)
    for other in (rebuilt, names["model"]):
        assert describe(other) == describe(model)
        assert repr(other) == repr(model)
        shapes = {key: value.shape for key, value in other.named_parameters()}
        assert shapes == {key: value.shape for key, value in model.named_parameters()}
