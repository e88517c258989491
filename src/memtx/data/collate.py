"""Rows as tensors."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memtx.checks import refusal
from memtx.context import IGNORED
from memtx.data.protocols import Arrays, Batch

_NEEDED = {"input_ids", "labels"}
_KNOWN = _NEEDED | {"attention_mask", "position_ids"}


def collate(rows: Sequence[Mapping[str, Any]], *, pad_token_id: int, length: int | None) -> Batch:
    """Give rows as a batch, filled on the right.

    Padding is masked and has no labels. In packed rows its positions start again, so that it is
    a document of its own to whoever tells documents from positions alone.

    Args:
        rows: `input_ids` and `labels`, and `position_ids` where packed: lists or arrays.
        pad_token_id: fills rows.
        length: places of a row; None, as many as the longest one has tokens.

    Raises:
        ValueError: if a row has other fields, not as many of each, or no integers.
    """
    tokens = np.array([_tokens(row, like=rows[0]) for row in rows])
    places = int(tokens.max()) if length is None else length
    shape = (len(rows), places)
    # Filled as arrays: writing a row into a tensor takes ten times as long.
    made = {
        "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
        "labels": np.full(shape, IGNORED, dtype=np.int64),
        "attention_mask": (np.arange(places) < tokens[:, None]).astype(np.int64),
    }
    if "position_ids" in rows[0]:
        made["position_ids"] = np.maximum(np.arange(places) - tokens[:, None], 0)
    for number, row in enumerate(rows):
        read: dict[int, Any] = {}
        for name, values in row.items():
            # Rows of text name their tokens as labels too: a list is read once.
            if id(values) not in read:
                read[id(values)] = _integers(values, name=name)
            made[name][number, : tokens[number]] = read[id(values)]
    return {name: torch.from_numpy(numbers) for name, numbers in made.items()}


def _tokens(row: Mapping[str, Any], *, like: Mapping[str, Any]) -> int:
    """Give the number of tokens of a row, which must have as many of everything."""
    fields, tokens = row.keys(), len(row.get("input_ids", ()))
    if not _NEEDED <= fields <= _KNOWN or fields != like.keys():
        message = refusal(
            owner="Batches",
            rule="rows must have input_ids and labels, and nothing but attention_mask and "
            "position_ids, all of them the same",
            got={"fields": sorted(fields)},
            remedy="make such rows with dataset.map(...), or take a TextRows or Documents",
        )
        raise ValueError(message)
    if not tokens or any(len(values) != tokens for values in row.values()):
        message = refusal(
            owner="Batches",
            rule="a row must have tokens, and as many of everything",
            got={name: len(values) for name, values in row.items()},
            remedy="leave empty rows out, and give a token without a label the label -100",
        )
        raise ValueError(message)
    return tokens


def _integers(values: Any, *, name: str) -> NDArray[np.integer[Any]]:
    """Give numbers as an array; numpy itself would round what is none."""
    try:
        held = array("q", values) if isinstance(values, list) else values
    except TypeError:
        held = values
    numbers = np.asarray(held)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        message = refusal(
            owner="Batches",
            rule="rows must hold integers",
            got={name: str(numbers.dtype), "shape": list(numbers.shape)},
            remedy="make tokens of the text first",
        )
        raise ValueError(message)
    return numbers


def tensors(rows: Arrays) -> Batch:
    """Give rows of one length, which lie in arrays, as a batch: what `collate` gives of them.

    Args:
        rows: `input_ids` and `labels`, each `[rows, length]`.
    """
    marked = rows | {"attention_mask": np.ones_like(rows["input_ids"])}
    return {name: torch.from_numpy(numbers) for name, numbers in marked.items()}
