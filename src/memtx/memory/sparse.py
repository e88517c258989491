"""Rows of a bank whose gradient is as small as what was read."""

from typing import cast

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require
from memtx.interfaces import MemoryBank
from memtx.memory.bank import StandardMemoryBank
from memtx.memory.low_rank import FactorizedMemoryBank, ReducedDimMemoryBank


def row_parameter(bank: object) -> nn.Parameter:
    """Give the parameter of a bank that has a row for each memory token.

    Args:
        bank: the bank.

    Raises:
        ValueError: if the bank has none that could learn row by row.
    """
    if isinstance(bank, StandardMemoryBank | ReducedDimMemoryBank):
        return bank.tokens
    require(
        ok=isinstance(bank, FactorizedMemoryBank),
        owner="row_parameter",
        rule="the bank must have a parameter with a row for each memory token",
        got={"bank": type(bank).__name__},
        remedy="use a StandardMemoryBank, ReducedDimMemoryBank or FactorizedMemoryBank",
    )
    return cast("FactorizedMemoryBank", bank).coordinates


def sparse_rows(bank: MemoryBank, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
    """Give rows of a bank; the gradient of its rows is a sparse tensor of those rows alone.

    The values are those of `bank.rows`. A row that is looked up twice stands twice in the gradient,
    until it is coalesced.

    Args:
        bank: the bank.
        indices: which memory tokens, in any shape.
    """
    parameter = row_parameter(bank)
    found = F.embedding(indices.to(parameter.device), parameter, sparse=True).to(indices.device)
    if isinstance(bank, FactorizedMemoryBank):
        return F.linear(found, bank.directions.to(found.device))
    return found
