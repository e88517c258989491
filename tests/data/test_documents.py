"""Sources, documents of them, and the buffer that shuffles."""

import json
import multiprocessing
import os

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from memtx.data import CutLong, Documents, ShuffleBuffer, Shuffled, Streamed, TokensEncoder
from tests.data import streams

FEW = streams.token_rows(count=50, longest=9)


def drawn(source, count):
    return [source.next_row() for _ in range(count)]


def jsonl(folder, num_files):
    """The rows as files, read one after the other as they are wanted."""
    for number in range(num_files):
        lines = [json.dumps(row) for row in FEW[number::num_files]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = [str(folder / f"{number}.jsonl") for number in range(num_files)]
    return load_dataset("json", data_files=files, split="train", streaming=True)


class Plain:
    """Starts anew at every `iter`, and keeps no position."""

    def __iter__(self):
        return iter(FEW)


def source_of(name, folder):
    """A source of each kind; only those of files need the folder."""
    if name == "map-style":
        return Shuffled(rows=Dataset.from_list(FEW), seed=0)
    if name == "a list":
        return Shuffled(rows=FEW, seed=0)
    if name == "streamed":
        return streams.streamed(FEW)
    if name == "anything":
        return Streamed(dataset=Plain())
    dataset = jsonl(folder, 3)
    if name == "files shuffled":
        dataset = dataset.shuffle(seed=4, buffer_size=1)
    if name == "filtered and mapped":
        dataset = dataset.filter(lambda row: len(row["ids"]) > 1)
        dataset = dataset.map(lambda row: {"ids": row["ids"][::-1]})
    if name == "mapped in batches":
        turned = {"batched": True, "batch_size": 4}
        dataset = dataset.map(lambda rows: {"ids": rows["ids"][::-1]}, **turned)
    return Streamed(dataset=dataset)


SOURCES = [
    "map-style",
    "a list",
    "streamed",
    "files",
    "files shuffled",
    "filtered and mapped",
    "mapped in batches",
    "anything",
]


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_comes_once_an_epoch(name, tmp_path):
    rows = drawn(source_of(name, tmp_path), 130)
    size = sum(epoch == 0 for epoch, _ in rows)
    assert size == (sum(len(row["ids"]) > 1 for row in FEW) if "filtered" in name else 50)
    assert [epoch for epoch, _ in rows] == [number // size for number in range(130)]
    first, second = (
        sorted(json.dumps(row) for epoch, row in rows if epoch == wanted) for wanted in (0, 1)
    )
    assert len(set(first)) == size
    assert first == second


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("cut", [0, 1, 17, 49, 50, 51, 104])
def test_a_position_in_a_source_is_exact(name, cut, tmp_path):
    uncut = source_of(name, tmp_path)
    drawn(uncut, cut)
    state = streams.through_json(uncut.state_dict())
    wanted = drawn(uncut, 70)
    resumed = source_of(name, tmp_path)
    drawn(resumed, 7)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert drawn(resumed, 70) == wanted


def test_two_readers_of_one_dataset_do_not_mix():
    dataset = Dataset.from_list(FEW).to_iterable_dataset(num_shards=4)
    one, other = Streamed(dataset=dataset), Streamed(dataset=dataset)
    wanted = drawn(streams.streamed(FEW), 60)
    drawn(one, 20)
    drawn(other, 3)
    state = one.state_dict()
    third = Streamed(dataset=dataset)
    third.load_state_dict(state)
    assert drawn(third, 40) == wanted[20:]


def test_a_dict_of_splits_is_refused():
    splits = DatasetDict({"train": Dataset.from_list(FEW), "test": Dataset.from_list(FEW)})
    for make in (lambda: Shuffled(rows=splits, seed=0), lambda: Streamed(dataset=splits)):
        expected = "must be one split, got dataset='DatasetDict', splits=\\['test', 'train'\\];"
        with pytest.raises(ValueError, match=expected):
            make()


def test_a_stream_in_the_place_of_a_table_is_refused():
    stream = Dataset.from_list([{"ids": [1]}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="^Shuffled: rows must .* got rows='IterableDataset';"):
        Shuffled(rows=stream, seed=0)


def test_data_without_rows_is_refused():
    with pytest.raises(ValueError, match="Shuffled: rows must not be empty, got rows=0;"):
        Shuffled(rows=Dataset.from_list([]), seed=0)
    with pytest.raises(ValueError, match="Streamed: .* rows in every epoch, got epoch=0, rows=0;"):
        Streamed(dataset=[]).next_row()
    with pytest.raises(ValueError, match="Streamed: .* rows in every epoch, got epoch=1, rows=0;"):
        drawn(Streamed(dataset=iter(FEW)), 51)


def test_a_buffer_of_the_dataset_is_refused():
    dataset = Dataset.from_list(FEW).to_iterable_dataset(num_shards=2)
    with pytest.raises(ValueError, match="Streamed: .* got buffer_size=10; .* a ShuffleBuffer."):
        Streamed(dataset=dataset.shuffle(seed=0, buffer_size=10).map(lambda row: row))


def test_a_position_in_other_data_is_refused():
    state = Shuffled(rows=FEW, seed=0).state_dict()
    with pytest.raises(ValueError, match="Shuffled: .* with rows=49, got rows=50,"):
        Shuffled(rows=FEW[:49], seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="Shuffled: .* with seed=1, got seed=0,"):
        Shuffled(rows=FEW, seed=1).load_state_dict(state)
    state = {"epoch": 0, "read": 9, "dataset": None}
    with pytest.raises(ValueError, match="Streamed: .* still have the 9 rows .* got rows=3;"):
        Streamed(dataset=FEW[:3]).load_state_dict(state)
    documents = streams.documents(streams.streamed(FEW), num_workers=0)
    state = ShuffleBuffer(documents=documents, size=3, seed=0).state_dict()
    with pytest.raises(ValueError, match="ShuffleBuffer: .* with seed=1, got seed=0,"):
        ShuffleBuffer(documents=documents, size=3, seed=1).load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_documents_come_in_the_order_of_rows(num_workers):
    documents = streams.documents(streams.streamed(FEW), num_workers=num_workers)
    found = [documents.next_document()[1]["input_ids"] for _ in range(100)]
    assert found[:50] == [row["ids"] for row in FEW]
    # The second epoch takes the files in another order.
    assert sorted(found[50:]) == found[:50]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_position_may_be_taken_up_with_chunks_of_another_size(chunk):
    def make(size):
        return Documents(
            source=Shuffled(rows=FEW, seed=0),
            encoder=TokensEncoder(input_ids="ids", labels=None),
            limit=CutLong(length=4),
            num_workers=0,
            chunk=size,
        )

    uncut = make(16)
    for _ in range(37):
        uncut.next_document()
    resumed = make(chunk)
    resumed.load_state_dict(streams.through_json(uncut.state_dict()))
    for _ in range(60):
        assert resumed.next_document() == uncut.next_document()


def test_workers_end_when_their_documents_are_dropped():
    documents = streams.documents(streams.streamed(FEW), num_workers=2)
    documents.next_document()
    assert len(multiprocessing.active_children()) == 2
    del documents
    assert multiprocessing.active_children() == []


def test_a_request_to_stop_that_is_for_all_of_a_group_does_not_reach_workers():
    """torchrun and terminals ask so; the run has yet to end its step and to save."""
    documents = streams.documents(streams.streamed(FEW), num_workers=1)
    documents.next_document()
    (worker,) = multiprocessing.active_children()
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)


def test_a_buffer_holds_documents_of_one_epoch_at_a_time():
    plain = streams.documents(streams.streamed(FEW), num_workers=0)
    buffer = ShuffleBuffer(documents=plain, size=20, seed=0)
    found = [buffer.next_document() for _ in range(150)]
    assert [epoch for epoch, _ in found] == [number // 50 for number in range(150)]
    tokens = [document["input_ids"] for _, document in found]
    wanted = [row["ids"] for row in FEW]
    assert sorted(tokens[:50]) == sorted(tokens[50:100]) == sorted(tokens[100:]) == wanted
    assert len({str(tokens[start : start + 50]) for start in (0, 50, 100)}) == 3
    # No document comes earlier than the buffer reaches.
    assert all(wanted.index(each) < place + 20 for place, each in enumerate(tokens[:50]))


def test_a_larger_buffer_than_the_data_holds_all_of_it():
    plain = streams.documents(streams.streamed(FEW), num_workers=0)
    buffer = ShuffleBuffer(documents=plain, size=1000, seed=0)
    found = [buffer.next_document()[1]["input_ids"] for _ in range(50)]
    assert sorted(found) == [row["ids"] for row in FEW]


def test_rows_that_make_no_documents_are_refused():
    rows = [{"ids": [5, 6], "labels": [-100, -100]}] * 3
    documents = Documents(
        source=Streamed(dataset=rows),
        encoder=TokensEncoder(input_ids="ids", labels="labels"),
        limit=CutLong(length=1),
        num_workers=0,
        chunk=2,
    )
    expected = "Documents: the rows of an epoch .* got epoch=1, documents=0;"
    with pytest.raises(ValueError, match=expected):
        documents.next_document()


def test_wrong_sizes_are_refused():
    source = Shuffled(rows=FEW, seed=0)
    with pytest.raises(ValueError, match="Documents: num_workers .* got num_workers=-1;"):
        streams.documents(source, num_workers=-1)
    encoder = TokensEncoder(input_ids="ids", labels=None)
    limit = CutLong(length=4)
    with pytest.raises(ValueError, match="Documents: chunk .* got chunk=0;"):
        Documents(source=source, encoder=encoder, limit=limit, num_workers=0, chunk=0)
    documents = streams.documents(source, num_workers=0)
    with pytest.raises(ValueError, match="ShuffleBuffer: size .* got size=0;"):
        ShuffleBuffer(documents=documents, size=0, seed=0)
