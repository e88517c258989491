"""Chapters that are kept: which leave, what is fetched ahead, and many threads at once."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from memtx.memory.offloaded_cache import ChapterCache, Traffic

HOST = torch.device("cpu")


def cache_of(num_chapters, num_places):
    chapters = {
        "rows": torch.arange(num_chapters * 6.0).view(num_chapters, 2, 3),
        "scales": torch.arange(num_chapters).view(num_chapters, 1),
    }
    traffic = Traffic(hits=0, misses=0, fetched_ahead=0, bytes_moved=0)
    return ChapterCache(chapters=chapters, num_places=num_places, device=HOST, traffic=traffic)


def read(cache, chapters):
    """Reads chapters, and checks that they are the right ones."""

    def take(store, places):
        assert torch.equal(store["rows"][list(places)], cache.chapters["rows"][chapters])
        assert torch.equal(store["scales"][list(places)], cache.chapters["scales"][chapters])
        return places

    return cache.read(chapters, take)


def test_who_was_read_longest_ago_leaves():
    cache = cache_of(8, 3)
    for chapter, kept in [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (0, [1, 2, 0]), (3, [2, 0, 3])]:
        read(cache, [chapter])
        assert cache.resident() == kept
    read(cache, [5, 2])
    assert cache.resident() == [3, 5, 2]


def test_more_than_there_is_room_for_is_refused():
    text = "^ChapterCache: a read must .*, got chapters=3, num_places=2;"
    with pytest.raises(ValueError, match=text):
        read(cache_of(8, 2), [0, 1, 2])


def test_what_is_fetched_ahead_is_there():
    cache = cache_of(8, 4)
    read(cache, [0, 1])
    cache.fetch_ahead([1, 5, 5, 6])
    cache.settle()
    assert cache.resident() == [0, 1, 5, 6]
    each = 6 * 4 + 8
    assert cache.traffic == Traffic(hits=0, misses=2, fetched_ahead=2, bytes_moved=4 * each)
    read(cache, [5, 6])
    assert cache.traffic == Traffic(hits=2, misses=2, fetched_ahead=2, bytes_moved=4 * each)
    # 0 was read longest ago, and what is asked for now is not taken away for it.
    cache.fetch_ahead([1, 7])
    cache.settle()
    assert cache.resident() == [5, 6, 1, 7]


def test_as_much_is_fetched_ahead_as_there_is_room_for():
    cache = cache_of(8, 2)
    cache.fetch_ahead([3, 4, 5, 6])
    cache.settle()
    assert cache.resident() == [3, 4]
    assert cache.traffic.fetched_ahead == 2


def held_back(cache, monkeypatch):
    """Lets the worker start its copies only when told to; gives who tells, and who started."""
    started, go, copy = threading.Event(), threading.Event(), cache._copy
    worker_only = threading.get_ident()

    def waits(moves):
        if threading.get_ident() != worker_only:
            started.set()
            assert go.wait(10)
        copy(moves)

    monkeypatch.setattr(cache, "_copy", waits)
    return started, go


def test_a_read_waits_for_what_is_on_its_way(monkeypatch):
    cache = cache_of(8, 3)
    started, go = held_back(cache, monkeypatch)
    cache.fetch_ahead([4])
    assert started.wait(10)
    read(cache, [0])  # another one does not wait
    assert cache.resident() == [0]
    threading.Timer(0.05, go.set).start()
    read(cache, [4])
    assert cache.traffic.hits == 1
    assert cache.traffic.misses == 1
    assert cache.traffic.fetched_ahead == 1


def test_a_read_that_has_no_room_yet_waits_for_it(monkeypatch):
    cache = cache_of(8, 2)
    started, go = held_back(cache, monkeypatch)
    cache.fetch_ahead([4, 5])
    assert started.wait(10)
    threading.Timer(0.05, go.set).start()
    read(cache, [0, 1])
    assert cache.resident() == [0, 1]


def test_a_fetch_that_fails_is_made_again_by_the_read(monkeypatch):
    cache = cache_of(8, 2)
    copy, fails = cache._copy, [True]

    def breaks(moves):
        if fails.pop() if fails else False:
            raise OSError("the disk is gone")
        copy(moves)

    monkeypatch.setattr(cache, "_copy", breaks)
    cache.fetch_ahead([4])
    cache.settle()
    assert cache.resident() == []
    read(cache, [4])
    assert cache.traffic.misses == 1
    fails.append(True)
    with pytest.raises(OSError, match="the disk is gone"):
        read(cache, [5])
    assert cache.resident() == [4]
    read(cache, [5, 4])


def test_many_threads_read_and_fetch():
    """Each read gets its own chapters whatever the others do, and each is counted once."""
    cache = cache_of(40, 7)
    asked = []

    def work(seed):
        draw = random.Random(seed)
        for _ in range(150):
            chapters = draw.sample(range(40), draw.randint(1, 7))
            if draw.random() < 0.3:
                cache.fetch_ahead(chapters)
            else:
                read(cache, chapters)
                asked.append(len(chapters))

    with ThreadPoolExecutor(max_workers=8) as pool:
        for each in [pool.submit(work, seed) for seed in range(8)]:
            each.result(timeout=60)
    cache.settle()
    traffic = cache.traffic
    assert traffic.hits + traffic.misses == sum(asked)
    assert traffic.bytes_moved == (traffic.misses + traffic.fetched_ahead) * (6 * 4 + 8)
    assert len(cache.resident()) == len(set(cache.resident())) == 7
