"""What follows from recorded reads, by hand."""

import math
import re

import pytest
import torch

from memtx.usage import Passage, Reads, overlap


def reads_of(chapters, real):
    chapters = torch.tensor(chapters)
    none = torch.zeros(*chapters.shape[:2], 0)
    return Reads(
        tokens_per_chapter=2,
        real=torch.tensor(real),
        chapters=chapters,
        tokens=none.long(),
        weights=none,
        watched=none,
    )


READS = reads_of(
    [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.75, 0.24, 0.01]]],
    [[False, True], [True, True]],
)


def test_load_entropies_and_dead_chapters():
    assert READS.load.tolist() == pytest.approx([2.25 / 3, 0.74 / 3, 0.01 / 3])
    load = [2.25 / 3, 0.74 / 3, 0.01 / 3]
    assert READS.entropy_of_load == pytest.approx(-sum(p * math.log(p) for p in load))
    last = -sum(p * math.log(p) for p in (0.75, 0.24, 0.01))
    assert READS.mean_entropy == pytest.approx((math.log(2) + last) / 3, rel=1e-5)
    assert READS.dead(at_least=0.5) == [2]
    assert READS.dead(at_least=0.01) == []
    assert READS.dead(at_least=0.6) == [1, 2]


def test_rows_and_padding_alone():
    first, second = READS.row(0), READS.row(1)
    assert first.load.tolist() == [1.0, 0.0, 0.0]
    assert second.real.shape == (1, 2)
    empty = reads_of([[[0.0, 0.0]]], [[False]])
    assert empty.load.tolist() == [0.0, 0.0]
    assert (empty.mean_entropy, empty.dead(at_least=0.5)) == (0.0, [0, 1])


def test_overlap_of_texts():
    one, other = READS.row(0), READS.row(1)
    assert overlap(one, one) == 1.0
    assert overlap(one, other) == overlap(other, one) == pytest.approx(0.625)
    apart = reads_of([[[0.0, 0.0, 1.0]]], [[True]])
    assert overlap(one, apart) == 0.0


def test_extending_cuts_and_fills():
    more = READS.row(1)
    longer = READS.row(0).extended(more, at=1)
    assert longer.real.tolist() == [[False, True, True]]
    assert longer.chapters[0, 1:].tolist() == more.chapters[0].tolist()
    gap = READS.row(0).extended(more, at=3)
    assert gap.real.tolist() == [[False, True, False, True, True]]
    assert more.shifted(1).real.tolist() == [[False, True, True]]
    assert Passage(ids=None, start=0, reads={"": gap}).reads[""] is gap


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_what_is_refused(value):
    with pytest.raises(ValueError, match=re.escape(f"lie in (0, 1], got at_least={value}; pass")):
        READS.dead(at_least=value)
    message = "overlap: both texts must have read the same bank, got chapters=[3, 2]; compare"
    with pytest.raises(ValueError, match=re.escape(message)):
        overlap(READS, reads_of([[[0.5, 0.5]]], [[True]]))
