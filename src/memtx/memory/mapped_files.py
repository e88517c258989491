"""Files of the rows of a bank: written as they come, opened where they lie."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from memtx.checks import refusal, require
from memtx.initialize import FromRows
from memtx.interfaces import MemoryBank
from memtx.memory.bank import StandardMemoryBank
from memtx.memory.offloaded_rows import row_layout
from memtx.memory.quantized import QuantizedMemoryBank
from memtx.ops.tensor_files import TensorWriter, mapped_tensors, sha256_of


def write_bank(*, bank: MemoryBank, path: str | Path) -> str:
    """Write a bank as a file that a `MappedMemoryBank` reads; give its sha256.

    The tensors are written as they are, in pieces: a bank whose rows lie in a file can be written
    again without reading it into memory.

    Args:
        bank: a `StandardMemoryBank`, `ReducedDimMemoryBank`, `FactorizedMemoryBank` or
            `QuantizedMemoryBank`, or one of these inside an `OffloadedMemoryBank` or a
            `MappedMemoryBank`.
        path: the file; it is replaced when it is whole.

    Raises:
        ValueError: if the bank is of another kind.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from memtx import Normal, write_bank
        >>> bank = StandardMemoryBank(num_memory_tokens=8, dim=4, init=Normal(std=1.0))
        >>> len(write_bank(bank=bank, path=Path(tempfile.mkdtemp()) / "bank.safetensors"))
        64
    """
    inside = getattr(bank, "stored", bank)
    row_layout(inside, owner="write_bank")
    tensors = _tensors(inside)
    target = _place(path, owner="write_bank")
    with TensorWriter(path=target, outlines=tensors) as file:
        for name, each in tensors.items():
            file.append(name, each)
    return sha256_of(target)


def write_rows(*, stored: MemoryBank, chunks: Iterable[Tensor], path: str | Path) -> str:
    """Write rows that come in chunks as a file that a `MappedMemoryBank` reads; give its sha256.

    At no time is more held than a chunk and what it becomes.

    Args:
        stored: an outline of the bank, made in `torch.device("meta")`; its dtype is the file's. A
            `QuantizedMemoryBank` quantizes each chunk. A `FactorizedMemoryBank` takes coordinates,
            and its `directions` must hold numbers.
        chunks: rows in order, `[any number, width]` each, on any device.
        path: the file; it is replaced when it is whole.

    Raises:
        ValueError: if a chunk has another width, or there are more or fewer rows than the bank has.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from memtx import write_rows
        >>> path = Path(tempfile.mkdtemp()) / "bank.safetensors"
        >>> with torch.device("meta"):
        ...     outline = QuantizedMemoryBank(num_memory_tokens=96, dim=4, bits=8, block_size=64)
        >>> chunks = (torch.randn(32, 4) for _ in range(3))
        >>> len(write_rows(stored=outline, chunks=chunks, path=path))
        64
    """
    layout = row_layout(stored, owner="write_rows")
    tensors = _tensors(stored)
    target = _place(path, owner="write_rows")
    rows = _counted(chunks, num_rows=stored.num_memory_tokens, width=layout.width)
    with TensorWriter(path=target, outlines=tensors) as file:
        for name, each in tensors.items():
            if name not in layout.names:
                file.append(name, _with_numbers(name, each))
        if isinstance(stored, QuantizedMemoryBank):
            for codes, scales in _quantized(rows, outline=stored):
                file.append("codes", codes)
                file.append("scales", scales)
        else:
            (name,) = layout.names
            for chunk in rows:
                file.append(name, chunk.to(tensors[name].dtype))
    return sha256_of(target)


def open_rows(
    path: Path,
    *,
    sha256: str | None,
    wanted: Mapping[str, Tensor],
    kept: tuple[str, ...],
    owner: object,
) -> dict[str, Tensor]:
    """Give the tensors of a file: those that are kept there as they lie, copies of the others.

    Args:
        path: the file.
        sha256: its checksum; None compares nothing.
        wanted: what it must hold.
        kept: names of those that stay in the file.
        owner: who reads.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has another checksum, or does not hold exactly what is wanted.
    """
    if not path.is_file():
        message = refusal(
            owner=owner,
            rule="path must be a file that write_bank or write_rows wrote",
            got={"path": str(path)},
            remedy="write it first",
        )
        raise FileNotFoundError(message)
    found = sha256_of(path) if sha256 is not None else None
    require(
        ok=found == sha256,
        owner=owner,
        rule=f"{path.name} must have the sha256 {sha256}",
        got={"sha256": found},
        remedy="the file is damaged or another one: restore it or write it again",
    )
    given = mapped_tensors(path)
    require(
        ok=_outlines(given) == _outlines(wanted),
        owner=owner,
        rule=f"{path.name} must hold exactly the tensors of the bank, {_outlines(wanted)}",
        got={"file": _outlines(given)},
        remedy="pass an outline of the bank that was written",
    )
    return {name: each if name in kept else each.clone() for name, each in given.items()}


def _outlines(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tell names, shapes and dtypes; one floating dtype is as good as another."""
    return {
        name: f"{'floating' if each.is_floating_point() else each.dtype} {list(each.shape)}"
        for name, each in sorted(tensors.items())
    }


def _tensors(bank: MemoryBank) -> dict[str, Tensor]:
    """Give the tensors of a bank by name, also those that a `MappedMemoryBank` holds."""
    held = dict(cast("nn.Module", bank).state_dict())
    layout: Any = row_layout(bank, owner="write_bank")
    return held | {name: getattr(bank, name).detach() for name in layout.names}


def _place(path: str | Path, *, owner: str) -> Path:
    target = Path(path)
    require(
        ok=target.parent.is_dir() and not target.is_dir(),
        owner=owner,
        rule="path must be a file in a folder that is there",
        got={"path": str(path)},
        remedy="make the folder first",
    )
    return target


def _with_numbers(name: str, tensor: Tensor) -> Tensor:
    require(
        ok=not tensor.is_meta,
        owner="write_rows",
        rule="what is no row must hold numbers",
        got={name: "meta"},
        remedy=f"set the bank's {name} to a parameter with numbers before you write",
    )
    return tensor


def _counted(chunks: Iterable[Tensor], *, num_rows: int, width: int) -> Iterator[Tensor]:
    """Give chunks, and refuse those that are not the rows of the bank."""
    count = 0
    for chunk in chunks:
        require(
            ok=chunk.ndim == 2 and chunk.shape[1] == width and chunk.is_floating_point(),
            owner="write_rows",
            rule=f"a chunk must be floating numbers [any number, {width}]",
            got={"shape": tuple(chunk.shape), "dtype": str(chunk.dtype)},
            remedy="cut the rows along their first axis",
        )
        count += chunk.shape[0]
        require(
            ok=count <= num_rows,
            owner="write_rows",
            rule=f"the chunks must have {num_rows} rows together",
            got={"rows": f"{count} or more"},
            remedy="give as many rows as stored.num_memory_tokens",
        )
        yield chunk
    require(
        ok=count == num_rows,
        owner="write_rows",
        rule=f"the chunks must have {num_rows} rows together",
        got={"rows": count},
        remedy="give as many rows as stored.num_memory_tokens",
    )


def _quantized(
    chunks: Iterator[Tensor], *, outline: QuantizedMemoryBank
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give codes and scales of whole blocks; what a chunk leaves over goes to the next."""
    # So many rows are whole blocks.
    step = outline.block_size // math.gcd(outline.dim, outline.block_size)
    left: Tensor | None = None
    for chunk in chunks:
        rows = chunk if left is None else torch.cat([left, chunk.to(left)])
        whole = rows.shape[0] // step * step
        left = rows[whole:]
        if whole:
            yield _blocks(rows[:whole], outline=outline)
    if left is not None and left.shape[0]:
        yield _blocks(left, outline=outline)


def _blocks(rows: Tensor, *, outline: QuantizedMemoryBank) -> tuple[Tensor, Tensor]:
    with torch.device(rows.device):
        plain = StandardMemoryBank(
            num_memory_tokens=rows.shape[0], dim=rows.shape[1], init=FromRows(tensor=rows)
        )
        small = QuantizedMemoryBank.from_bank(
            bank=plain, bits=outline.bits, block_size=outline.block_size
        )
    return small.codes, small.scales.to(outline.scales.dtype)
