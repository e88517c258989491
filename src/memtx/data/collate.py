"""Rows as tensors."""

import numpy as np
import torch
from torch import Tensor

from memtx.context import IGNORED
from memtx.data.protocols import Batch, Document


def collate(rows: list[Document], *, pad_token_id: int, length: int | None) -> Batch:
    """Give rows as a batch, filled on the right.

    Padding is masked and has no labels. In packed rows its positions start again, so that it is
    a document of its own to whoever tells documents from positions alone.

    Args:
        rows: `input_ids` and `labels`, and `position_ids` where packed.
        pad_token_id: fills rows.
        length: places of a row; None, as many as the longest one has tokens.
    """
    places = max(len(row["input_ids"]) for row in rows) if length is None else length
    shape = (len(rows), places)
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    if "position_ids" in rows[0]:
        batch["position_ids"] = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens = len(row["input_ids"])
        made: dict[int, Tensor] = {}
        for name, values in row.items():
            # Rows of text name their tokens as labels too: a list is read once.
            if id(values) not in made:
                made[id(values)] = torch.from_numpy(np.array(values, dtype=np.int64))
            batch[name][number, :tokens] = made[id(values)]
        batch["attention_mask"][number, :tokens] = 1
        if "position_ids" in row:
            batch["position_ids"][number, tokens:] = torch.arange(places - tokens)
    return batch
