"""Deleting chapters: what is left answers as if they had never been there."""

import copy
import re

import pytest
import torch

from memtx import (
    ChapterRouter,
    FactorizedMemoryBank,
    FromRows,
    Linear,
    LowRankLinear,
    MemoryBlock,
    MemoryLibrary,
    Normal,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    Site,
    StandardMemoryBank,
    TokenRouting,
    build,
    describe,
    load,
    load_adapter,
    save,
)
from memtx.generate import AsProjected, freeze_for_inference
from memtx.ops.memory_read import dense_read
from memtx.usage import delete_chapters, without_chapters
from tests import routing
from tests.adapters.bases import llama, logits, token_ids, working_adapter
from tests.docs.small import attend, stack
from tests.parts import bank_of, linear, random_like, reader, recall, think
from tests.routing import CHAPTERS, DIM, MIXINGS, STRATEGIES, TOKENS

each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
PLACES = [(0, Site.AFTER_ATTENTION), (2, Site.AFTER_MLP)]


def refused(message, model, bank, chapters, size):
    with pytest.raises(ValueError, match=re.escape(message)):
        delete_chapters(model, bank=bank, chapters=chapters, tokens_per_chapter=size)


def test_a_dense_read_is_the_read_of_the_tokens_that_are_left():
    read = random_like(reader(bank_of(7, DIM), DIM))
    x, before = torch.randn(2, 5, DIM), read.bank
    rows = before().detach()[[0, 1, 6]]
    smaller = delete_chapters(read, bank=before, chapters=[1, 2], tokens_per_chapter=2)
    assert read.bank is smaller
    assert torch.equal(smaller(), rows)
    query = read.q_proj(x).unflatten(-1, (4, -1))
    key = read.k_proj(rows).unflatten(-1, (2, -1))
    value = read.v_proj(rows).unflatten(-1, (2, -1))
    wanted = read.o_proj(dense_read(query, key, value, 0.0).flatten(-2))
    assert torch.equal(read(x), wanted)


def without(read, kept):
    """The same reader built with only the chapters that are kept, by hand."""
    shared = sum(chapter < 1 for chapter in kept)
    places = [chapter - 1 for chapter in kept if chapter >= 1]
    tokens = [chapter * TOKENS + place for chapter in kept for place in range(TOKENS)]
    scorer = linear(DIM, len(places))
    bank = bank_of(len(tokens), read.bank.dim)
    with torch.no_grad():
        scorer.weight.copy_(read.router.scorer.weight[places])
        bank.tokens.copy_(read.bank.tokens[tokens])
    changes = {"num_chapters": len(kept), "num_shared_chapters": shared, "scorer": scorer}
    changes["top_k"] = min(3, len(places))
    made = routing.reader(
        read.router.strategy,
        read.mixing,
        {"bank": bank, "router": routing.router(read.router.strategy, changes)},
    )
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(made, name, getattr(read, name))
    return made


@pytest.mark.parametrize("gone", [[4], [8, 1, 4], [0], [0, 2, 3, 4, 5, 6, 7]], ids=str)
@pytest.mark.parametrize("mixing", MIXINGS.values(), ids=MIXINGS)
@each_strategy
def test_a_routed_read_is_that_of_a_smaller_router_and_bank(strategy, mixing, gone):
    read = random_like(routing.reader(strategy, mixing, {}))
    kept = [chapter for chapter in range(CHAPTERS) if chapter not in gone]
    wanted = without(read, kept)
    delete_chapters(read, bank=read.bank, chapters=gone, tokens_per_chapter=TOKENS)
    x = torch.randn(2, 7, DIM)
    assert torch.equal(read(x), wanted(x))
    assert read.router.num_chapters == len(kept)


@each_strategy
def test_deleting_is_as_a_score_that_never_wins(strategy):
    scorer = Linear(in_features=DIM, out_features=8, bias=True, init=Normal(std=1.0))
    router = routing.router(strategy, {"scorer": scorer})
    read = random_like(routing.reader(strategy, MIXINGS["joint"], {"router": router}))
    masked = copy.deepcopy(read)
    with torch.no_grad():
        masked.router.scorer.shift[[2, 6]] = -1e9
    delete_chapters(read, bank=read.bank, chapters=[3, 7], tokens_per_chapter=TOKENS)
    x = torch.randn(2, 7, DIM)
    torch.testing.assert_close(read(x), masked(x))


def dense_transformer():
    bank = bank_of(8, DIM)
    blocks = [MemoryBlock(sublayers=[attend(), recall(bank, DIM), think(DIM)]) for _ in range(2)]
    return stack([bank], blocks)


def whole_models():
    yield dense_transformer(), 2
    yield routing.transformer(TokenRouting(), losses=[]), TOKENS
    yield working_adapter(llama(), Site.AFTER_ATTENTION), 2
    yield routing.adapter(llama(), TokenRouting(), sites=PLACES, losses=[]), TOKENS


def test_all_readers_of_a_bank_and_the_artifact_follow(tmp_path):
    ids = torch.randint(2, 24, (2, 6))
    for number, (model, size) in enumerate(whole_models()):
        adapted = hasattr(model, "base")
        bank, before = model.banks[0], logits(model, ids)
        count = bank.num_memory_tokens
        smaller = delete_chapters(model, bank=bank, chapters=[1], tokens_per_chapter=size)
        assert smaller.num_memory_tokens == count - size
        assert not any(part is bank for part in model.modules())
        assert model.banks[0] is smaller
        changed = logits(model, ids)
        assert not torch.equal(changed, before)
        spec = describe(model)
        assert spec["shared"]["bank"]["arguments"]["num_memory_tokens"] == count - size
        assert f"num_memory_tokens={count - size}" in repr(model)
        build(spec, base=copy.deepcopy(model).remove()) if adapted else build(spec)
        path = tmp_path / str(number)
        save(model, path)
        again = load_adapter(path, base=model.remove()) if adapted else load(path)
        assert torch.equal(logits(again, ids), changed)
        assert again.banks[0]().shape[0] == count - size


def test_an_adapter_without_its_memory_is_the_base_still():
    base, ids = llama(), token_ids(2, 5)
    plain = logits(base, ids)
    adapter = working_adapter(base, Site.AFTER_ATTENTION)
    delete_chapters(adapter, bank=adapter.banks[0], chapters=[0], tokens_per_chapter=2)
    with adapter.disabled():
        assert torch.equal(logits(adapter, ids), plain)
    assert torch.equal(logits(adapter.remove(), ids), plain)


def test_inside_a_block_and_back_to_the_bit():
    for model, size in whole_models():
        ids = torch.randint(2, 24, (2, 6))
        before, parts = logits(model, ids), list(model.modules())
        deleted = copy.deepcopy(model)
        delete_chapters(deleted, bank=deleted.banks[0], chapters=[2], tokens_per_chapter=size)
        bank = model.banks[0]
        with without_chapters(model, bank=bank, chapters=[2], tokens_per_chapter=size):
            assert torch.equal(logits(model, ids), logits(deleted, ids))
        assert [id(part) for part in model.modules()] == [id(part) for part in parts]
        assert torch.equal(logits(model, ids), before)


def rows_bank():
    return StandardMemoryBank(num_memory_tokens=8, dim=4, init=FromRows(tensor=torch.randn(8, 4)))


def quantized(bits, dim, tokens):
    bank = bank_of(tokens, dim)
    return QuantizedMemoryBank.from_bank(bank=bank, bits=bits, block_size=64)


BANKS = {
    "standard": lambda: bank_of(8, 4),
    "given rows": rows_bank,
    "factorized": lambda: FactorizedMemoryBank(
        num_memory_tokens=8, dim=4, rank=2, init=Normal(std=1.0)
    ),
    "reduced": lambda: ReducedDimMemoryBank(num_memory_tokens=8, rank=4, init=Normal(std=1.0)),
    "quantized, a block a token": lambda: quantized(8, 64, 8),
    "quantized, blocks of two tokens": lambda: quantized(4, 32, 8),
    "quantized, tokens of three blocks": lambda: quantized(4, 96, 8),
}


@pytest.mark.parametrize("make", BANKS.values(), ids=BANKS)
def test_every_bank_keeps_its_numbers_flags_and_dtype(make):
    bank = make().bfloat16() if make is BANKS["standard"] else make()
    bank.requires_grad_(False).eval()
    read = reader(bank_of(7, bank.dim), bank.dim).to(bank().dtype)
    read.bank, wanted = bank, bank()[[0, 1, 4, 5]]
    state = torch.get_rng_state()
    smaller = delete_chapters(read, bank=bank, chapters=[1, 3], tokens_per_chapter=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(smaller) is type(bank)
    assert not smaller.training
    assert torch.equal(smaller(), wanted)
    assert not any(each.requires_grad for each in smaller.parameters())
    describe(smaller)


def test_low_rank_scorers_lose_rows_too():
    scorer = LowRankLinear(in_features=DIM, out_features=8, rank=3, init=Normal(std=1.0))
    router = routing.router(TokenRouting(), {"scorer": scorer})
    read = routing.reader(TokenRouting(), MIXINGS["joint"], {"router": router})
    x = torch.randn(3, DIM)
    wanted = scorer(x)[:, [0, 1, 3, 4, 5, 6, 7]]
    delete_chapters(read, bank=read.bank, chapters=[3], tokens_per_chapter=TOKENS)
    torch.testing.assert_close(read.router.scorer(x), wanted)


class Scorer(torch.nn.Linear):
    pass


def test_what_cannot_be_deleted_is_refused_and_leaves_the_model():
    read = reader(bank_of(7, DIM), DIM)
    bank = read.bank
    refused(
        "tokens_per_chapter must be an integer of at least 1, got tokens_per_chapter=0",
        read,
        bank,
        [0],
        0,
    )
    refused(
        "delete_chapters: chapters must be at least one number from 0 to 3, got chapters=[4]; "
        "count chapters from 0.",
        read,
        bank,
        [0, 4],
        2,
    )
    refused("got chapters=[]; count", read, bank, [], 2)
    refused(
        "at least one chapter must be left, got chapters=[0, 1], num_memory_tokens=7;",
        read,
        bank,
        [1, 0, 0],
        4,
    )
    refused(
        "the model must read the bank, by readers that memtx knows, got readers=[]; pass the",
        read,
        bank_of(7, DIM),
        [0],
        2,
    )
    refused(
        "must not be in a library, which reads several at once, got model='MemoryLibrary';",
        MemoryLibrary(base=llama(), memories={}),
        bank,
        [0],
        2,
    )
    frozen = freeze_for_inference(read, storage=AsProjected())
    refused("not be kept from before, got frozen='MemoryCrossAttention'; thaw", read, bank, [0], 2)
    frozen.thaw()
    assert read.bank is bank


def test_what_a_router_cannot_lose_is_refused():
    routed = routing.reader(TokenRouting(), MIXINGS["joint"], {})
    refused(
        "must be that of the routers of the bank, got tokens_per_chapter=2, of a router=4; pass 4",
        routed,
        routed.bank,
        [0],
        2,
    )
    left = list(range(1, CHAPTERS))
    refused(
        "left for the router to choose, got num_chapters=9, num_shared_chapters=1, left=[0];",
        routed,
        routed.bank,
        left,
        TOKENS,
    )
    routed.router.scorer = Scorer(DIM, 8)
    refused(
        "the scorer must be one whose rows memtx knows, got scorer='Scorer'; use one of",
        routed,
        routed.bank,
        [3],
        TOKENS,
    )
    assert isinstance(routed.router, ChapterRouter)


def test_what_a_bank_cannot_lose_is_refused():
    read = reader(bank_of(7, 32), 32)
    read.bank = quantized(8, 32, 8)
    refused(
        "of a quantized bank whole blocks must be deleted, 2 memory tokens each, got "
        "num_memory_tokens=8, kept=7; delete before",
        read,
        read.bank,
        [0],
        1,
    )
    read.bank = FactorizedMemoryBank(num_memory_tokens=8, dim=32, rank=4, init=Normal(std=1.0))
    refused(
        "keep at least as many memory tokens as its rank, got kept=2, rank=4;",
        read,
        read.bank,
        [0, 1, 2],
        2,
    )
