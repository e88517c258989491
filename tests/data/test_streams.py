"""Ten thousand documents over processes and workers, and positions that are taken up again."""

import json
import random
from itertools import pairwise

import pytest
import torch

from memtx.data import FullRows, OnePerRow, WholeDocuments
from tests.data import streams
from tests.train.processes import launch

MANY = streams.token_rows(count=10_000, longest=60)
FEW = streams.token_rows(count=150, longest=60)


def epochs_of(drawn: list[list[int]], size: int) -> list[list[int]]:
    """The tokens of batches in order, epoch by epoch; the last one that is not whole left out."""
    joined = [token for tokens in drawn for token in tokens]
    return [joined[start : start + size] for start in range(0, len(joined) - size + 1, size)]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 2), (3, 0), (3, 2)])
def test_every_token_comes_once_an_epoch_over_processes_and_workers(world_size, num_workers):
    ranks = [streams.pipeline(MANY, num_workers=num_workers) for _ in range(world_size)]
    size, drawn, count = streams.total(MANY), [], 0
    while count < size:
        for rank, stream in enumerate(ranks):
            batch = stream.next_batch(rank=rank, world_size=world_size)
            assert batch["attention_mask"].all()
            drawn.append(streams.tokens_of(batch))
            count += len(drawn[-1])
    (epoch,) = epochs_of(drawn, size)
    assert sorted(epoch) == list(range(size))
    assert epoch != list(range(size))


def test_epochs_are_whole_and_unlike_even_where_rows_span_them():
    size = streams.total(FEW)
    for source in (streams.shuffled(FEW), streams.streamed(FEW)):
        stream = streams.batches(streams.buffered(source, num_workers=0), FullRows(length=40))
        drawn = [streams.tokens_of(stream.next_batch(rank=0, world_size=1)) for _ in range(200)]
        epochs = epochs_of(drawn, size)
        assert len(epochs) == 3
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))


def test_processes_share_one_sequence():
    alone = streams.pipeline(FEW, num_workers=0)
    wanted = [alone.next_batch(rank=0, world_size=1) for _ in range(24)]
    for world_size in (2, 3):
        for rank in range(world_size):
            stream = streams.pipeline(FEW, num_workers=0)
            for number in range(rank, 24, world_size):
                batch = stream.next_batch(rank=rank, world_size=world_size)
                assert streams.same(batch, wanted[number])


@pytest.mark.slow
def test_three_real_processes_with_workers(tmp_path):
    done = launch("tests.data.worker", folder=tmp_path, arguments=[], num_processes=3)
    assert done.returncode == 0, done.stderr[-3000:]
    by_rank = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    drawn = [tokens for each in zip(*by_rank, strict=True) for tokens in each]
    size = streams.total(MANY)
    assert sorted(epochs_of(drawn, size)[0]) == list(range(size))


@pytest.mark.parametrize("source", [streams.shuffled, streams.streamed])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "packing",
    [
        lambda: FullRows(length=40),
        lambda: WholeDocuments(length=50, num_open=3),
        OnePerRow,
    ],
    ids=["full", "whole", "padded"],
)
def test_a_position_is_exact_to_the_token(source, num_workers, packing):
    def make(workers):
        stream = streams.buffered(source(FEW), num_workers=workers)
        return streams.batches(stream, packing())

    uncut = make(num_workers)
    cuts = sorted(random.Random(num_workers).sample(range(1, 130), 3))
    found = []
    for number in range(cuts[-1] + 12):
        if number in cuts:
            found.append((number, json.dumps(uncut.state_dict())))
        uncut.next_batch(rank=0, world_size=1)
    again = make(num_workers)
    wanted = [again.next_batch(rank=0, world_size=1) for _ in range(cuts[-1] + 12)]
    # With as many workers, and with another number of them.
    for number, state in found:
        for workers in (num_workers, 2 - num_workers):
            resumed = make(workers)
            resumed.load_state_dict(json.loads(state))
            assert json.dumps(resumed.state_dict()) == state
            for batch in wanted[number : number + 12]:
                assert streams.same(resumed.next_batch(rank=0, world_size=1), batch)


def test_a_position_is_taken_up_by_another_number_of_processes():
    pair = [streams.pipeline(FEW, num_workers=0) for _ in range(2)]
    for _ in range(7):
        for rank, stream in enumerate(pair):
            stream.next_batch(rank=rank, world_size=2)
    states = [stream.state_dict() for stream in pair]
    assert states[0] == states[1]
    alone = streams.pipeline(FEW, num_workers=0)
    for _ in range(14):
        alone.next_batch(rank=0, world_size=1)
    assert alone.state_dict() == states[0]
    for rank in range(3):
        third = streams.pipeline(FEW, num_workers=0)
        third.load_state_dict(streams.through_json(states[0]))
        own = third.next_batch(rank=rank, world_size=3)
        assert streams.same(own, alone.next_batch(rank=0, world_size=1))


def test_a_position_may_be_taken_up_with_batches_of_another_size():
    stream = streams.pipeline(FEW, num_workers=0)
    for _ in range(5):
        stream.next_batch(rank=0, world_size=1)
    wider = streams.pipeline(FEW, num_workers=0)
    wider.batch_size = 6
    wider.load_state_dict(streams.through_json(stream.state_dict()))
    rows = [stream.next_batch(rank=0, world_size=1)["input_ids"] for _ in range(3)]
    assert torch.equal(wider.next_batch(rank=0, world_size=1)["input_ids"], torch.cat(rows))


def test_a_kept_position_does_not_move_with_the_stream():
    stream = streams.pipeline(FEW, num_workers=0)
    stream.next_batch(rank=0, world_size=1)
    state = stream.state_dict()
    before = json.dumps(state)
    for _ in range(9):
        stream.next_batch(rank=0, world_size=1)
    assert json.dumps(state) == before


def test_a_stream_goes_back_to_an_earlier_position():
    stream = streams.pipeline(FEW, num_workers=2)
    state = stream.state_dict()
    first = [stream.next_batch(rank=0, world_size=1) for _ in range(5)]
    stream.load_state_dict(state)
    for batch in first:
        assert streams.same(stream.next_batch(rank=0, world_size=1), batch)


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    streams.pipeline(FEW, num_workers=2).next_batch(rank=0, world_size=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rank_that_no_process_has_is_refused():
    stream = streams.pipeline(FEW, num_workers=0)
    for rank, world_size in ((2, 2), (-1, 1)):
        expected = f"StreamBatches: rank .* got rank={rank}, world_size={world_size};"
        with pytest.raises(ValueError, match=expected):
            stream.next_batch(rank=rank, world_size=world_size)


def test_rows_of_another_length_cannot_take_up_a_position():
    state = streams.pipeline(FEW, num_workers=0).state_dict()
    other = streams.batches(
        streams.buffered(streams.streamed(FEW), num_workers=0), FullRows(length=41)
    )
    with pytest.raises(ValueError, match="FullRows: .* with length=41, got length=40,"):
        other.load_state_dict(state)


def test_what_a_worker_refuses_is_said_in_its_words():
    rows = [*FEW[:3], {"ids": []}]
    for num_workers in (0, 1):
        stream = streams.pipeline(rows, num_workers=num_workers)
        with pytest.raises(
            ValueError, match="^TokensEncoder: every row must have tokens.*"
        ) as caught:
            stream.next_batch(rank=0, world_size=1)
        assert len(str(caught.value).splitlines()) == 1
        # Where it happened in the worker is not lost.
        notes = "".join(getattr(caught.value, "__notes__", []))
        assert ("in __getitem__" in notes) == bool(num_workers)
