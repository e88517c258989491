"""Text that a base is to stay true to: given, or made up by the base itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from memtx.checks import require
from memtx.data import TextRows, begin_tokens
from memtx.generate import padding_token, samples

# Every so many rows one is kept aside, up to a number of them.
HELD_OUT_EVERY = 8
MOST_HELD_OUT = 64


@final
@dataclass(frozen=True, kw_only=True)
class Background:
    """Rows to hold the model to, and others to measure by.

    Args:
        training: rows of tokens.
        held_out: rows that are not trained on.

    Source: memtx's own.

    Example:
        >>> Background(training=[[1, 2]], held_out=[[3, 4]]).held_out
        [[3, 4]]
    """

    training: list[list[int]]
    held_out: list[list[int]]


def background_of(documents: list[str], *, tokenizer: Any, length: int) -> Background:
    """Cut documents into rows, and keep some aside.

    Args:
        documents: the texts.
        tokenizer: of the base.
        length: tokens of a row.

    Raises:
        ValueError: if they make fewer than 8 rows.
    """
    rows = TextRows(documents=documents, tokenizer=tokenizer, length=length)
    return _parted([rows[number]["input_ids"] for number in range(len(rows))], length=length)


def own_background(
    base: Any, *, tokenizer: Any, num_rows: int, length: int, batch_size: int, seed: int
) -> Background:
    """Let a base make up its own background: what it says unasked is what it should go on to say.

    Args:
        base: the pretrained model.
        tokenizer: its tokenizer.
        num_rows: how many texts it makes up, one to a row.
        length: tokens of a row at most.
        batch_size: texts at a time.
        seed: decides the texts.

    Raises:
        ValueError: if fewer than 8 texts have two tokens.
    """
    end = tokenizer.eos_token_id
    begin = begin_tokens(tokenizer) or [padding_token(tokenizer) if end is None else end]
    made = samples(
        model=base,
        prompts=[begin] * num_rows,
        max_new_tokens=length - len(begin),
        batch_size=batch_size,
        temperature=1.0,
        seed=seed,
        pad_token_id=padding_token(tokenizer),
        eos_token_id=end,
    )
    return _parted([[*begin, *text] for text in made if text], length=length)


def _parted(rows: Sequence[list[int]], *, length: int) -> Background:
    require(
        ok=len(rows) >= HELD_OUT_EVERY,
        owner="background",
        rule=f"the background must fill at least {HELD_OUT_EVERY} rows of {length} tokens",
        got={"rows": len(rows)},
        remedy="pass more text, or leave it out to let the base make up its own",
    )
    # At even distances over the whole text.
    every = max(HELD_OUT_EVERY, -(-len(rows) // MOST_HELD_OUT))
    return Background(
        training=[row for number, row in enumerate(rows) if number % every],
        held_out=[row for number, row in enumerate(rows) if number % every == 0],
    )
