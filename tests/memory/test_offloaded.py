"""Banks in the host's memory: equal to the plain ones, in training too, and counted."""

import copy
import pickle
import re

import pytest
import torch

from memtx import (
    FactorizedMemoryBank,
    IndependentSoftmax,
    JointSoftmax,
    MemoryCrossAttention,
    Normal,
    OffloadedMemoryBank,
    RollingRouting,
    StandardMemoryBank,
    TokenRouting,
)
from memtx.memory.offloaded_cache import Traffic
from tests.memory.distant import BANKS, CHAPTER, NUM, offloaded
from tests.parts import bank_of, read_arguments
from tests.routing import CHAPTERS, TOKENS, reader

each_bank = pytest.mark.parametrize("make", BANKS.values(), ids=BANKS)
INDICES = [[0], [47, 3, 3, 44], [[0, 17], [-1, -48]], [], list(range(NUM)), list(range(20, -1, -1))]


@pytest.mark.shapes
@each_bank
@pytest.mark.parametrize("places", [1, 3, NUM // CHAPTER])
@torch.no_grad()
def test_rows_are_those_of_the_plain_bank(make, places):
    bank = make()
    distant = offloaded(bank, places)
    assert (distant.num_memory_tokens, distant.dim) == (bank.num_memory_tokens, bank.dim)
    for indices in INDICES * 2:
        chosen = torch.tensor(indices, dtype=torch.long)
        found, wanted = distant.rows(chosen), bank.rows(chosen)
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert torch.equal(found, wanted)


@pytest.mark.shapes
@each_bank
@pytest.mark.parametrize("places", [1, 3, NUM // CHAPTER])
@torch.no_grad()
def test_chapters_are_those_of_the_plain_bank(make, places):
    """Of its own size and of another, in any order, some twice, more than have room."""
    bank = make()
    distant = offloaded(bank, places)
    for numbers in ([3], [0, 11], [7, 2, 7], [], list(range(12))):
        for size in (CHAPTER, 2 * CHAPTER):
            asked = torch.tensor(numbers, dtype=torch.long) // (size // CHAPTER)
            wanted = bank.rows(asked[:, None] * size + torch.arange(size))
            assert torch.equal(distant.chapters(asked, size), wanted)
    assert distant.traffic.hits + distant.traffic.misses > 0
    with pytest.raises(IndexError, match="got index=48;"):
        distant.chapters(torch.tensor([12]), CHAPTER)


@each_bank
def test_all_tokens_where_all_have_room(make):
    bank = make()
    with torch.no_grad():
        assert torch.equal(offloaded(bank, NUM // CHAPTER)(), bank())
    text = (
        "OffloadedMemoryBank: all tokens can only be given at once where all chapters have room, "
    )
    with pytest.raises(ValueError, match=f"^{text}got chapters=12, num_resident_chapters=11;"):
        offloaded(bank, 11)()


@torch.no_grad()
def test_every_read_is_counted():
    """Chapters 0, 1, 2, ... of four tokens of width 6: 96 bytes each."""
    bank = offloaded(bank_of(NUM, 6), 2)

    def after(chapters):
        tokens = torch.tensor([CHAPTER * each + place for each in chapters for place in (1, 0)])
        bank.rows(tokens)
        return bank.traffic

    assert after([0]) == Traffic(hits=0, misses=1, fetched_ahead=0, bytes_moved=96)
    assert after([0, 1]) == Traffic(hits=1, misses=2, fetched_ahead=0, bytes_moved=192)
    assert after([0]) == Traffic(hits=2, misses=2, fetched_ahead=0, bytes_moved=192)
    # 1 was read longest ago.
    assert after([2]) == Traffic(hits=2, misses=3, fetched_ahead=0, bytes_moved=288)
    assert after([0]) == Traffic(hits=3, misses=3, fetched_ahead=0, bytes_moved=288)
    assert after([1]) == Traffic(hits=3, misses=4, fetched_ahead=0, bytes_moved=384)
    # Three do not fit: they come in two parts.
    assert after([3, 4, 5]) == Traffic(hits=3, misses=7, fetched_ahead=0, bytes_moved=672)
    bank.forget()
    assert after([5]) == Traffic(hits=3, misses=8, fetched_ahead=0, bytes_moved=768)
    assert bank.resident_bytes == 2 * 96


@torch.no_grad()
def test_what_is_kept_is_as_small_as_what_is_stored():
    bank = offloaded(BANKS["8 bits"](), 3)
    bank.rows(torch.tensor([0]))
    # 4 tokens of 32 codes, and 2 scales of 4 bytes, three times.
    assert bank.resident_bytes == 3 * (4 * 32 + 2 * 4)
    assert bank.traffic.bytes_moved == 4 * 32 + 2 * 4


@pytest.mark.parametrize("index", [NUM, -NUM - 1, 2**40])
def test_rows_that_are_not_there_are_refused(index):
    text = rf"^OffloadedMemoryBank: an index must lie in \[-48, 48\), got index={index};"
    with torch.no_grad(), pytest.raises(IndexError, match=text):
        offloaded(bank_of(NUM, 4), 2).rows(torch.tensor([0, index]))


@pytest.mark.parametrize("make", [BANKS["standard"], BANKS["reduced"], BANKS["factorized"]])
def test_gradients_are_those_of_the_plain_bank(make):
    bank = make()
    distant = offloaded(copy.deepcopy(bank), 2)
    indices = torch.tensor([[0, 5, 5], [40, -1, 0]])
    upstream = torch.randn(*indices.shape, bank.dim)
    bank.rows(indices).backward(upstream)
    distant.rows(indices).backward(upstream)
    for mine, wanted in zip(distant.parameters(), bank.parameters(), strict=True):
        assert torch.equal(mine.grad, wanted.grad)
    assert distant.traffic.misses == 0


def test_what_is_kept_follows_training():
    """A step of an optimizer, a load, an exchange: the next read sees it."""
    bank = bank_of(NUM, 4)
    distant, index = offloaded(bank, 2), torch.tensor([1])

    def seen():
        with torch.no_grad():
            return distant.rows(index)

    assert torch.equal(seen(), bank.rows(index))
    optimizer = torch.optim.AdamW(distant.parameters(), lr=0.1)
    before = seen()
    distant.rows(index).sum().backward()
    optimizer.step()
    assert torch.equal(seen(), bank.tokens[index])
    assert not torch.equal(seen(), before)
    distant.load_state_dict({"stored.tokens": torch.ones(NUM, 4)})
    assert seen().tolist() == [[1.0] * 4]
    distant.stored.tokens = torch.nn.Parameter(torch.zeros(NUM, 4))
    assert seen().tolist() == [[0.0] * 4]


def test_in_inference_mode_and_out_of_it():
    bank = bank_of(NUM, 4)
    distant = offloaded(bank, 2)
    with torch.inference_mode():
        assert torch.equal(distant.rows(torch.tensor([1])), bank.rows(torch.tensor([1])))
    with torch.no_grad():
        assert torch.equal(distant.rows(torch.tensor([9])), bank.rows(torch.tensor([9])))


@pytest.mark.parametrize("mixing", [JointSoftmax(), IndependentSoftmax()])
@pytest.mark.parametrize("strategy", [TokenRouting(), RollingRouting(window=3)])
def test_a_reader_reads_and_learns_alike(strategy, mixing):
    bank = bank_of(CHAPTERS * TOKENS, 6)
    plain = reader(strategy, mixing, {"bank": bank})
    distant = copy.deepcopy(plain)
    distant.bank = OffloadedMemoryBank(
        stored=distant.bank, tokens_per_chapter=TOKENS, num_resident_chapters=4
    )
    x = torch.randn(2, 7, 8)
    with torch.no_grad():
        assert torch.equal(distant(x), plain(x))
        assert distant.bank.traffic.misses > 0
    for each in (plain, distant):
        each(x).pow(2).sum().backward()
    assert torch.equal(distant.bank.stored.tokens.grad, plain.bank.tokens.grad)
    assert torch.equal(distant.router.scorer.weight.grad, plain.router.scorer.weight.grad)


@torch.no_grad()
def test_a_dense_reader_reads_what_has_room():
    bank = bank_of(8, 8)
    arguments = read_arguments(8)
    x = torch.randn(2, 3, 8)
    wanted = MemoryCrossAttention(**(arguments | {"bank": bank}))(x)
    distant = OffloadedMemoryBank(stored=bank, tokens_per_chapter=2, num_resident_chapters=4)
    assert torch.equal(MemoryCrossAttention(**(arguments | {"bank": distant}))(x), wanted)


def test_moves_leave_the_rows_on_the_host():
    """The meta device apart, which has no rows anywhere."""
    bank = OffloadedMemoryBank(
        stored=FactorizedMemoryBank(num_memory_tokens=8, dim=4, rank=2, init=Normal(std=1.0)),
        tokens_per_chapter=2,
        num_resident_chapters=1,
    )
    bank.rows(torch.tensor([0])).sum().backward()
    moved = []

    def elsewhere(tensor):
        """Stands for a move to a GPU, which has another dtype here so that it shows."""
        moved.append(tuple(tensor.shape))
        return tensor.double()

    rows = bank.stored.coordinates
    bank._apply(elsewhere)
    # The directions and their gradient went; of the rows only their dtype was asked for.
    assert moved.count((4, 2)) == 2
    assert (8, 2) not in moved
    assert bank.stored.coordinates is rows
    assert {rows.dtype, rows.grad.dtype} == {torch.float64}
    assert bank.to("meta").stored.coordinates.is_meta
    assert bank.to_empty(device="cpu").stored.coordinates.shape == (8, 2)


def test_copies_start_with_nothing():
    bank = offloaded(bank_of(NUM, 4), 2)
    with torch.no_grad():
        bank.rows(torch.tensor([1]))
    for again in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert again.traffic == Traffic(hits=0, misses=0, fetched_ahead=0, bytes_moved=0)
        with torch.no_grad():
            assert torch.equal(again.rows(torch.tensor([5])), bank.rows(torch.tensor([5])))
            again.stored.tokens.zero_()
            assert bank.rows(torch.tensor([5])).abs().sum() > 0.0


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_trace_breaks_and_reads_alike():
    bank = OffloadedMemoryBank(
        stored=bank_of(CHAPTERS * TOKENS, 6), tokens_per_chapter=TOKENS, num_resident_chapters=3
    )
    part = reader(RollingRouting(window=3), JointSoftmax(), {"bank": bank}).eval()
    x = torch.randn(2, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(part, backend="eager")(x), part(x))


@pytest.mark.parametrize("name", ["tokens_per_chapter", "num_resident_chapters"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_sizes_that_are_refused(name, value):
    sizes = {"tokens_per_chapter": 4, "num_resident_chapters": 2} | {name: value}
    text = f"OffloadedMemoryBank: {name} must be an integer of at least 1, got {name}={value!r};"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        OffloadedMemoryBank(stored=bank_of(8, 4), **sizes)


def test_chapters_that_do_not_divide_are_refused():
    text = "got num_memory_tokens=48, tokens_per_chapter=5;"
    with pytest.raises(ValueError, match=f"^OffloadedMemoryBank: .*, {text}"):
        OffloadedMemoryBank(stored=bank_of(NUM, 4), tokens_per_chapter=5, num_resident_chapters=2)
    text = "got tokens_per_chapter=1, dim=32, block_size=64;"
    with pytest.raises(ValueError, match=f"^OffloadedMemoryBank: the blocks .*, {text}"):
        OffloadedMemoryBank(stored=BANKS["8 bits"](), tokens_per_chapter=1, num_resident_chapters=2)


def test_other_banks_are_refused():
    text = "^OffloadedMemoryBank: stored must be .*, got stored='OffloadedMemoryBank';"
    with pytest.raises(ValueError, match=text):
        offloaded(offloaded(bank_of(NUM, 4), 2), 2)


def test_rows_without_numbers_are_refused():
    with torch.device("meta"):
        bank = offloaded(StandardMemoryBank(num_memory_tokens=NUM, dim=4, init=Normal(std=1.0)), 2)
    text = "^OffloadedMemoryBank: the rows must hold numbers to be read, got tokens='meta';"
    with torch.no_grad(), pytest.raises(ValueError, match=text):
        bank.rows(torch.tensor([0]))
