"""Banks that lie elsewhere, read by a GPU: the same numbers, on streams and in threads."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from memtx import JointSoftmax, RollingRouting
from tests.memory.distant import BANKS, CHAPTER, NUM, mapped, offloaded
from tests.memory.test_fetched_ahead import put, settle
from tests.memory.test_offloaded import INDICES
from tests.parts import bank_of
from tests.routing import CHAPTERS, TOKENS, reader, transformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = "cuda"
PLACES = ("host", "file")


def distant(bank, places, where, folder):
    return offloaded(bank, places) if where == "host" else mapped(bank, places, folder)


def needs(name):
    if "bits" in name:
        pytest.importorskip("bitsandbytes", reason="dequantizes")


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("places", [1, 3, NUM // CHAPTER])
@torch.no_grad()
def test_rows_are_those_of_the_plain_bank(where, name, places, tmp_path):
    needs(name)
    bank = BANKS[name]()
    far = distant(copy.deepcopy(bank), places, where, tmp_path).to(GPU)
    near = bank.to(GPU)
    for indices in INDICES * 2:
        chosen = torch.tensor(indices, dtype=torch.long, device=GPU)
        found = far.rows(chosen)
        assert found.device.type == GPU
        assert torch.equal(found, near.rows(chosen))
    numbers = torch.tensor([4, 11, 0], device=GPU)
    rows = numbers[:, None] * CHAPTER + torch.arange(CHAPTER, device=GPU)
    for _ in range(2):
        assert torch.equal(far.chapters(numbers, CHAPTER), near.rows(rows))
    assert all(not getattr(far.stored, each).is_cuda for each in far._distant.layout.names)
    assert far.resident_bytes <= places * sum(
        getattr(far.stored, each).nbytes // (NUM // CHAPTER) for each in far._distant.layout.names
    )


@torch.no_grad()
def test_host_rows_are_pinned_when_a_gpu_reads():
    bank = offloaded(bank_of(NUM, 4), 2).to(GPU)
    assert not bank.stored.tokens.is_pinned()
    bank.rows(torch.tensor([0], device=GPU))
    assert bank.stored.tokens.is_pinned()
    assert isinstance(bank.stored.tokens, torch.nn.Parameter)
    bank.rows(torch.tensor([0], device=GPU))
    assert bank.traffic.hits == 1  # pinning forgot nothing


@pytest.mark.parametrize("name", ["standard", "reduced", "factorized"])
def test_gradients_go_to_the_host(name):
    bank = BANKS[name]()
    far = offloaded(copy.deepcopy(bank), 2).to(GPU)
    near = bank.to(GPU)
    indices = torch.tensor([[0, 5, 5], [40, -1, 0]], device=GPU)
    upstream = torch.randn(*indices.shape, bank.dim, device=GPU)
    near.rows(indices).backward(upstream)
    far.rows(indices).backward(upstream)
    for (key, mine), wanted in zip(far.named_parameters(), near.parameters(), strict=True):
        assert mine.grad.device == mine.device
        assert mine.is_cuda == (key == "stored.directions")
        torch.testing.assert_close(mine.grad.cpu(), wanted.grad.cpu())
    torch.optim.AdamW(far.parameters(), lr=0.1).step()
    with torch.no_grad():
        found = far.rows(torch.tensor([0], device=GPU))
        assert not torch.equal(found, near.rows(torch.tensor([0], device=GPU)))


@pytest.mark.parametrize("where", PLACES)
@torch.no_grad()
def test_many_streams_and_threads(where, tmp_path):
    """While copies overwrite places, every read sees its own chapters."""
    width = 4096  # rows wide enough that copies take a while
    bank = bank_of(NUM, width)
    near, far = bank.tokens.detach().to(GPU), distant(bank, 5, where, tmp_path).to(GPU)

    def work(seed):
        draw, wrong = random.Random(seed), torch.zeros((), dtype=torch.bool, device=GPU)
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            wrong = wrong.clone()
            for _ in range(100):
                chapters = torch.tensor(draw.sample(range(NUM // CHAPTER), draw.randint(1, 5)))
                rows = (chapters[:, None] * CHAPTER + torch.arange(CHAPTER)).to(GPU)
                if draw.random() < 0.4:
                    far.fetch_ahead(rows)
                else:
                    found = (
                        far.rows(rows)
                        if draw.random() < 0.5
                        else far.chapters(chapters.to(GPU), CHAPTER)
                    )
                    wrong |= (found != near[rows]).any()
            torch.cuda.current_stream().synchronize()
            return bool(wrong)

    torch.cuda.synchronize()
    with ThreadPoolExecutor(max_workers=6) as pool:
        assert [each.result() for each in [pool.submit(work, seed) for seed in range(6)]] == (
            [False] * 6
        )
    settle(far)


@pytest.mark.parametrize("where", PLACES)
@torch.no_grad()
def test_a_reader_reads_alike(where, tmp_path):
    bank = bank_of(CHAPTERS * TOKENS, 6)
    near = reader(RollingRouting(window=3), JointSoftmax(), {"bank": bank})
    far = copy.deepcopy(near)
    far.bank = distant(copy.deepcopy(bank), 4, where, tmp_path)
    x = torch.randn(2, 7, 8, device=GPU)
    assert torch.equal(far.to(GPU)(x), near.to(GPU)(x))


@pytest.mark.parametrize("where", PLACES)
@torch.no_grad()
def test_generation_is_the_same_and_fetches_ahead(where, tmp_path):
    model = transformer(RollingRouting(window=3), losses=[])
    bank = model.banks[0]
    far = distant(copy.deepcopy(bank), CHAPTERS, where, tmp_path)
    ids = torch.randint(0, 64, (2, 5), device=GPU)
    options = {"max_new_tokens": 20, "do_sample": False, "use_cache": True}
    wanted = model.to(GPU).generate(input_ids=ids, **options)
    put(model, far)
    model.to(GPU)
    found = model.generate(input_ids=ids, **options)
    assert torch.equal(found, wanted)
    settle(far)
    assert far.traffic.fetched_ahead > 0
    assert far.traffic.hits > far.traffic.misses
