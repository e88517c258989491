"""Batches by number."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from memtx.data import Batches, TextRows
from tests.train import tiny


def rows_of(count: int) -> list[dict[str, list[int]]]:
    """Row `n` holds its own number, from 1, `n` times, with a label on the last place only."""
    return [{"input_ids": [n] * n, "labels": [-100] * (n - 1) + [n]} for n in range(1, count + 1)]


def make(*, num_rows: int, batch_size: int, seed: int) -> Batches:
    return Batches(rows=rows_of(num_rows), batch_size=batch_size, seed=seed, pad_token_id=99)


def drawn(batches: Batches, count: int) -> list[int]:
    """The numbers of the rows of the first batches, in order."""
    return [row for index in range(count) for row in batches[index]["input_ids"][:, 0].tolist()]


def test_every_row_comes_once_per_epoch_even_where_batches_span_epochs():
    order = drawn(make(num_rows=7, batch_size=3, seed=0), 7)  # three epochs of seven rows
    epochs = [order[:7], order[7:14], order[14:]]
    assert all(sorted(epoch) == list(range(1, 8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_span_many_epochs():
    batch = make(num_rows=2, batch_size=7, seed=0)[1]
    counts = Counter(batch["input_ids"][:, 0].tolist())
    assert sorted(counts.values()) == [3, 4]


def test_batches_depend_on_seed_and_number_alone():
    plain = make(num_rows=7, batch_size=3, seed=5)
    wanted = [plain[index] for index in range(40)]
    other = make(num_rows=7, batch_size=3, seed=5)
    for index in [39, 0, 17, 3, 39, 2, 16, 1]:
        given = other[index]
        assert given.keys() == wanted[index].keys()
        assert all(torch.equal(given[key], wanted[index][key]) for key in given)


def test_another_seed_is_another_order():
    orders = {tuple(drawn(make(num_rows=7, batch_size=7, seed=seed), 1)) for seed in range(4)}
    assert len(orders) == 4


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first = drawn(make(num_rows=7, batch_size=3, seed=5), 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert drawn(make(num_rows=7, batch_size=3, seed=5), 7) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_is_on_the_right_masked_and_without_labels():
    batch = make(num_rows=3, batch_size=3, seed=0)[0]
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (3, 3),
        "labels": (3, 3),
        "attention_mask": (3, 3),
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}
    by_row = {ids[0]: number for number, ids in enumerate(batch["input_ids"].tolist())}
    order = [by_row[n] for n in (1, 2, 3)]
    assert batch["input_ids"][order].tolist() == [[1, 99, 99], [2, 2, 99], [3, 3, 3]]
    assert batch["labels"][order].tolist() == [[1, -100, -100], [-100, 2, -100], [-100, -100, 3]]
    assert batch["attention_mask"][order].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_processes_take_every_so_many_batches():
    plain = make(num_rows=7, batch_size=3, seed=5)
    for rank in range(3):
        stream = make(num_rows=7, batch_size=3, seed=5)
        for step in range(4):
            given, wanted = stream.next_batch(rank=rank, world_size=3), plain[3 * step + rank]
            assert all(torch.equal(given[key], wanted[key]) for key in wanted)


def test_a_position_is_taken_up():
    uncut = make(num_rows=7, batch_size=3, seed=5)
    for _ in range(4):
        uncut.next_batch(rank=0, world_size=1)
    state = json.loads(json.dumps(uncut.state_dict()))
    resumed = make(num_rows=7, batch_size=3, seed=5)
    resumed.load_state_dict(state)
    given, wanted = (each.next_batch(rank=0, world_size=1) for each in (resumed, uncut))
    assert all(torch.equal(given[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("changed", ["num_rows", "batch_size", "seed"])
def test_a_position_in_other_batches_is_refused(changed):
    own = {"num_rows": 7, "batch_size": 3, "seed": 5}
    state = make(**own).state_dict()
    name = changed.removeprefix("num_")
    expected = f"Batches: .* with {name}={own[changed] + 1}, got {name}={own[changed]},"
    with pytest.raises(ValueError, match=expected):
        make(**{**own, changed: own[changed] + 1}).load_state_dict(state)


def test_a_rank_that_no_process_has_is_refused():
    with pytest.raises(ValueError, match="Batches: rank .* got rank=1, world_size=1;"):
        make(num_rows=1, batch_size=1, seed=0).next_batch(rank=1, world_size=1)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="Batches: rows must not be empty, got rows=0;"):
        make(num_rows=0, batch_size=1, seed=0)


@pytest.mark.parametrize("batch_size", [0, -2, 1.5])
def test_a_wrong_batch_size_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"Batches: batch_size .* got batch_size={batch_size};"):
        make(num_rows=1, batch_size=batch_size, seed=0)


def test_rows_in_arrays_make_the_batches_that_lists_make():
    tokenizer = tiny.byte_tokenizer(crosses_words=False)
    rows = TextRows(documents=tiny.DOCUMENTS, tokenizer=tokenizer, length=7)
    lists = [rows[number] for number in range(len(rows))]
    one, other = (
        Batches(rows=each, batch_size=3, seed=2, pad_token_id=9) for each in (rows, lists)
    )
    for index in range(5):
        assert one[index].keys() == other[index].keys()
        assert all(torch.equal(one[index][name], other[index][name]) for name in one[index])
    # A batch is a copy: whoever changes it changes no row.
    one[0]["input_ids"].zero_()
    assert torch.equal(one[0]["input_ids"], other[0]["input_ids"])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input_ids": [1, 2]}, r"input_ids and labels, .* got fields=\['input_ids'\];"),
        ({"text": "a"}, r"got fields=\['text'\];"),
        (
            {"input_ids": [1], "labels": [1], "text": "a"},
            r"got fields=\['input_ids', 'labels', 'text'\];",
        ),
        ({"input_ids": [1, 2], "labels": [1]}, "as many of everything, got input_ids=2, labels=1;"),
        ({"input_ids": [], "labels": []}, "must have tokens, .* got input_ids=0, labels=0;"),
        ({"input_ids": [1.5, 2], "labels": [1, 2]}, "integers, got input_ids='float64', shape="),
        ({"input_ids": [[1]], "labels": [[1]]}, r"got input_ids='int64', shape=\[1, 1\];"),
        ({"input_ids": ["1"], "labels": [1]}, "integers, got input_ids='<U1'"),
    ],
)
def test_rows_that_would_be_learnt_wrongly_are_refused(row, expected):
    batches = Batches(rows=[row], batch_size=1, seed=0, pad_token_id=0)
    with pytest.raises(ValueError, match=f"^Batches: .*{expected}"):
        batches[0]


def test_rows_of_different_fields_are_refused():
    packed = {"input_ids": [1], "labels": [1], "position_ids": [0]}
    for rows in ([packed, *rows_of(1)], [*rows_of(1), packed]):
        batches = Batches(rows=rows, batch_size=2, seed=0, pad_token_id=0)
        with pytest.raises(ValueError, match="all of them the same, got fields="):
            batches[0]


def test_numbers_may_come_as_tensors_or_arrays():
    row = rows_of(3)[2]
    (wanted,) = (Batches(rows=[row], batch_size=1, seed=0, pad_token_id=0)[0],)
    for make in (torch.tensor, np.array):
        made = {name: make(values) for name, values in row.items()}
        given = Batches(rows=[made], batch_size=1, seed=0, pad_token_id=0)[0]
        assert all(torch.equal(given[name], wanted[name]) for name in wanted)
