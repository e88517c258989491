"""What follows a text, behind the text: rows of which only what follows is learned."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

from memtx.checks import require, require_positive
from memtx.context import IGNORED

# What was read, and what follows it, as tokens.
Reading = tuple[list[int], list[int]]


def begin_tokens(tokenizer: Any) -> list[int]:
    """Give what a tokenizer puts before every text: its begin token, or nothing.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """
    found: list[int] = tokenizer("")["input_ids"]
    # Some put an end token behind every text too.
    return found[:1] if found[:1] == [tokenizer.bos_token_id] else []


def pieces_of(tokenizer: Any, documents: Sequence[str], *, length: int) -> list[list[int]]:
    """Cut documents into pieces of at most so many tokens, without begin and end tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        documents: the texts; a piece is of one of them.
        length: tokens of a piece; the last of a document may have fewer.

    Raises:
        ValueError: if `length` is below 1, or no document has a token.
    """
    require_positive(owner="pieces_of", sizes={"length": length})
    pieces = [
        ids[start : start + length]
        for text in documents
        for ids in [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        for start in range(0, len(ids), length)
    ]
    require(
        ok=bool(pieces),
        owner="pieces_of",
        rule="a document must have at least one token",
        got={"documents": len(documents)},
        remedy="pass text",
    )
    return pieces


def read_again(pieces: Sequence[list[int]]) -> list[Reading]:
    """Let each piece follow itself: a base that has just read a text can say it again.

    Args:
        pieces: tokens of pieces of a text.
    """
    return [(piece, piece) for piece in pieces]


def read_on(pieces: Sequence[list[int]]) -> list[Reading]:
    """Let each piece follow the one before it, as in the text.

    Args:
        pieces: tokens of the pieces of one text, in order.
    """
    return list(pairwise(pieces))


@final
class ContextRows:
    """Texts and what follows them as rows of `input_ids` and `labels`: what follows counts.

    Args:
        readings: pairs of tokens: what was read, and what follows it.
        prefix: tokens before every row, without a label: `begin_tokens(tokenizer)`.

    Raises:
        ValueError: if there are no readings, or nothing follows in one.

    Source: rows of context distillation, as `memtx.train.DistillationLoss` takes them.

    Example:
        >>> ContextRows(readings=[([5, 6], [7])], prefix=[1])[0]
        {'input_ids': [1, 5, 6, 7], 'labels': [-100, -100, -100, 7]}
    """

    def __init__(self, *, readings: Sequence[Reading], prefix: list[int]) -> None:
        empty = sum(not following for _, following in readings)
        require(
            ok=bool(readings) and not empty,
            owner=self,
            rule="there must be at least one reading, and something must follow in each",
            got={"readings": len(readings), "without a continuation": empty},
            remedy="pass pairs of tokens, (what was read, what follows)",
        )
        self.readings = readings
        self.prefix = prefix

    def __len__(self) -> int:
        """Give the number of readings."""
        return len(self.readings)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Give one row."""
        read, following = self.readings[index]
        before = [*self.prefix, *read]
        return {
            "input_ids": [*before, *following],
            "labels": [IGNORED] * len(before) + list(following),
        }
