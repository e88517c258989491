"""Which banks a model owns, which its layers read, and rows of one that stands elsewhere."""

from collections.abc import Iterable
from itertools import chain
from typing import TypeGuard

from torch import Tensor, nn

from memtx.checks import require
from memtx.interfaces import DistantBank, MemoryBank


def check_banks(
    *, owner: object, banks: list[nn.Module], readers: Iterable[nn.Module], reader: str
) -> None:
    """Refuse a list of banks that is not the banks that are read, each once.

    Args:
        owner: the model that owns the banks.
        banks: the banks it is given.
        readers: what reads them, at any depth.
        reader: what a user calls one of these.

    Raises:
        ValueError: if a bank is missing, unread or listed twice.
    """
    read = [part.bank for each in readers for part in each.modules() if hasattr(part, "bank")]
    listed, used = [id(bank) for bank in banks], {id(bank) for bank in read}
    require(
        ok=used <= set(listed),
        owner=owner,
        rule=f"banks must list every bank that {reader} reads",
        got={"banks": len(banks), "missing": [b for b in read if id(b) not in listed][:1]},
        remedy="add the missing bank instance to banks=[...]",
    )
    require(
        ok=set(listed) == used and len(listed) == len(used),
        owner=owner,
        rule="banks must list each bank that is read once, and no other",
        got={"banks": len(listed), "read": len(used)},
        remedy=f"remove the bank that no {reader.rsplit(maxsplit=1)[-1]} reads, or the repetition",
    )


def is_distant(bank: MemoryBank) -> TypeGuard[DistantBank]:
    """Tell whether the rows of a bank lie elsewhere than where they are read.

    Args:
        bank: the bank.
    """
    return hasattr(bank, "fetch_ahead")  # asked in every read: quicker than the protocol


def rows_for(bank: MemoryBank, indices: Tensor) -> Tensor:
    """Give rows of a bank where they are asked for: a bank that layers share may stand elsewhere.

    Args:
        bank: the bank.
        indices: which memory tokens.
    """
    if is_distant(bank):
        return bank.rows(indices)
    tensors = chain(bank.parameters(), bank.buffers()) if isinstance(bank, nn.Module) else ()
    home = next((tensor.device for tensor in tensors), indices.device)
    return bank.rows(indices.to(home)).to(indices.device)
