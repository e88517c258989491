"""Safetensors files larger than memory: written in pieces, and read where they lie."""

import hashlib
import json
import mmap
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memtx.checks import refusal, require

# As safetensors names them, in the order in which it lays tensors out, last first.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = list(DTYPES)
# Bytes that are written at a time.
_PIECE = 2**24
# Linux maps so many bytes around one that is looked at: all of them are given back together.
_AROUND = max(2**16, mmap.PAGESIZE)
# Where the files that are read in place begin in memory.
_MAPS: "weakref.WeakValueDictionary[int, mmap.mmap]" = weakref.WeakValueDictionary()


def sha256_of(path: Path) -> str:
    """Give the sha256 of a file, in hexadecimal.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@final
class TensorWriter:
    """Writes a safetensors file whose tensors come in pieces, and are never held whole.

    Used in a `with` block. The bytes are those that `safetensors` itself writes. Until the block
    ends without an error the file stands under another name; an incomplete one is removed.

    Args:
        path: the file; its folder exists.
        outlines: shape and dtype of each tensor, by name; the numbers are not looked at.

    Raises:
        ValueError: if a dtype is not in `DTYPES`, or at the end, if a tensor did not come whole.
        OSError: if the file cannot be written.

    Source: the format of safetensors, whose own writer takes whole tensors.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.safetensors"
        >>> with TensorWriter(path=path, outlines={"rows": torch.empty(4, 2)}) as file:
        ...     for _ in range(2):
        ...         file.append("rows", torch.ones(2, 2))
        >>> mapped_tensors(path)["rows"].sum()
        tensor(8.)
    """

    def __init__(self, *, path: Path, outlines: Mapping[str, Tensor]) -> None:
        for name, each in outlines.items():
            require(
                ok=each.dtype in _NAMES,
                owner=self,
                rule=f"the dtype of a tensor must be one of {', '.join(map(str, _NAMES))}",
                got={"tensor": name, "dtype": str(each.dtype)},
                remedy="convert it first",
            )
        self.path = path
        self.outlines = outlines
        self._part = path.with_name(f".{path.name}.part")
        self._at: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> "TensorWriter":
        """Open the file and write its header."""
        names = sorted(self.outlines, key=lambda n: (-_rank(self.outlines[n]), n))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            each, start = self.outlines[name], end
            end += each.numel() * each.element_size()
            self._at[name], self._ends[name] = start, end
            header[name] = {
                "dtype": _NAMES[each.dtype],
                "shape": list(each.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        begins = 8 + len(text)
        self._at = {name: begins + at for name, at in self._at.items()}
        self._ends = {name: begins + at for name, at in self._ends.items()}
        with self._telling():
            self._file = self._part.open("wb", buffering=0)
            self._write(len(text).to_bytes(8, "little") + text, at=0)
        return self

    def append(self, name: str, piece: Tensor) -> None:
        """Write the next numbers of a tensor.

        Args:
            name: of the tensor.
            piece: the numbers, of any shape, in its dtype, on any device.

        Raises:
            ValueError: if the piece has another dtype, or goes beyond the end.
            OSError: if it cannot be written.
        """
        outline, size = self.outlines[name], piece.numel() * piece.element_size()
        require(
            ok=piece.dtype == outline.dtype and self._at[name] + size <= self._ends[name],
            owner=self,
            rule="the pieces of a tensor must have its dtype, and as many numbers as it has",
            got={"tensor": name, "dtype": str(piece.dtype), "shape": tuple(outline.shape)},
            remedy="write what was announced",
        )
        numbers = piece.detach().contiguous().reshape(-1).view(torch.uint8)
        with self._telling():
            for part in numbers.split(_PIECE):
                self._write(memoryview(part.cpu().numpy()), at=self._at[name])
                self._at[name] += part.numel()
                release(part)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the file in its place, or away."""
        short = {name: self._ends[name] - at for name, at in self._at.items()}
        short = {name: missing for name, missing in short.items() if missing}
        if kind is None and not short and self._file is not None:
            with self._telling():
                self._file.close()
                self._part.replace(self.path)
            return
        self._give_up()
        if kind is None:
            require(
                ok=False,
                owner=self,
                rule="every tensor must come whole",
                got={"missing bytes": short},
                remedy="write as many rows as were announced",
            )

    def _write(self, data: bytes | memoryview, *, at: int) -> None:
        if self._file is None:
            raise RuntimeError("TensorWriter: used outside of its `with` block.")
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, at)
            left, at = left[written:], at + written

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say which file could not be written; a full disk is the usual reason."""
        try:
            yield
        except OSError as error:
            self._give_up()
            message = refusal(
                owner=self,
                rule="the file must be written whole",
                got={"path": str(self.path), "system": error.strerror or str(error)},
                remedy="make room or choose another place",
            )
            raise OSError(error.errno, message) from error

    def _give_up(self) -> None:
        if self._file is not None:
            self._file.close()
        self._part.unlink(missing_ok=True)


def _rank(tensor: Tensor) -> int:
    return _ORDER.index(_NAMES[tensor.dtype])


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a file as they lie in it: read when they are looked at, never written.

    Writing to such a tensor in place ends the process.

    Args:
        path: a safetensors file. It may be replaced or removed, but must not be changed in place.

    Raises:
        ValueError: if it is no safetensors file, or holds a dtype that is not in `DTYPES`.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # its own reader knows best whether a file is sound
    except SafetensorError as error:
        message = f"mapped_tensors: {path.name} must be a safetensors file, got path={str(path)!r}"
        raise ValueError(f"{message} ({error}); restore the file.") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(memory, "madvise"):
        memory.madvise(mmap.MADV_RANDOM)
    header.pop("__metadata__", None)
    for name, each in header.items():
        require(
            ok=each["dtype"] in DTYPES,
            owner="mapped_tensors",
            rule=f"the dtype of a tensor must be one of {', '.join(DTYPES)}",
            got={"tensor": name, "dtype": each["dtype"]},
            remedy="write it again",
        )
    with warnings.catch_warnings():
        # That they cannot be written is what is wanted.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        _MAPS[torch.frombuffer(memory, dtype=torch.uint8).data_ptr()] = memory
        return {name: _view(memory, each, begins=8 + length) for name, each in header.items()}


def _view(memory: mmap.mmap, each: dict[str, Any], *, begins: int) -> Tensor:
    count = prod(each["shape"])
    dtype = DTYPES[each["dtype"]]
    if count == 0:
        return torch.empty(each["shape"], dtype=dtype)
    start = begins + each["data_offsets"][0]
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(each["shape"])


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether a tensor lies in a file of `mapped_tensors`.

    Args:
        tensor: any.
    """
    return any(True for _ in _places(tensor))


def will_need(tensor: Tensor) -> None:
    """Let the system read a tensor in before it is looked at; nothing if it lies in no file.

    Args:
        tensor: contiguous numbers of a file.
    """
    _advise(tensor, "MADV_WILLNEED")


def release(tensor: Tensor) -> None:
    """Give back the memory that a tensor of a file takes; its numbers are read again when needed.

    Args:
        tensor: contiguous numbers of a file; another is left alone.
    """
    _advise(tensor, "MADV_DONTNEED")


def _advise(tensor: Tensor, advice: str) -> None:
    for memory, start in _places(tensor):
        if hasattr(memory, "madvise"):
            first = start // _AROUND * _AROUND
            end = -(-(start + tensor.numel() * tensor.element_size()) // _AROUND) * _AROUND
            memory.madvise(getattr(mmap, advice), first, min(end, len(memory)) - first)


def _places(tensor: Tensor) -> Iterator[tuple[mmap.mmap, int]]:
    """Give the file that a tensor lies in, and where in it."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    at = tensor.data_ptr()
    for base, memory in list(_MAPS.items()):
        if base <= at < base + len(memory):
            yield memory, at - base
