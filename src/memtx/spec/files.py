"""Folders that hold a spec and its tensors: written whole, read strictly."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memtx.checks import require, unwritable
from memtx.ops.tensor_files import TensorWriter, is_mapped, mapped_tensors, sha256_of


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the files of a folder are called, and what the folder holds.

    Args:
        what: what a user calls it.
        header: name of the JSON file with the spec and the tensors' checksum.
        tensors: name of the safetensors file.
        beside: names of other files that may stand in the folder; they stay when it is replaced.
        folders: names of folders that may stand in it; they are replaced with it.

    Source: memtx's own.

    Example:
        >>> Layout(what="memory", header="memory.json", tensors="memory.safetensors",
        ...        beside=(), folders=()).what
        'memory'
    """

    what: str
    header: str
    tensors: str
    beside: tuple[str, ...]
    folders: tuple[str, ...]

    def names(self) -> set[str]:
        """Give the names of all that may stand in the folder."""
        return {self.header, self.tensors, *self.beside, *self.folders}


def require_place(path: str | os.PathLike[str], *, layout: Layout) -> None:
    """Find out now, and not after hours of training, whether a folder can be written.

    Args:
        path: the folder; folders above it are made.
        layout: names of the files that it will hold.

    Raises:
        ValueError: if `path` holds anything else.
        OSError: if the place cannot be written.
    """
    _, staging = _staged(path, layout=layout)
    staging.rmdir()


def _staged(path: str | os.PathLike[str], *, layout: Layout) -> tuple[Path, Path]:
    """Give a folder that may be written or replaced, and an empty one beside it."""
    # Links are followed: what is replaced is the folder, not the link to it.
    target = Path(path).resolve()
    require(
        ok=not target.exists() or target.is_dir(),
        owner="save",
        rule="path must be a folder or free",
        got={"path": str(path)},
        remedy="choose another path",
    )
    strangers = sorted(p.name for p in target.iterdir()) if target.exists() else []
    strangers = [name for name in strangers if name not in layout.names()]
    require(
        ok=not strangers,
        owner="save",
        rule=f"path must be free, empty or hold a saved {layout.what} and nothing else",
        got={"path": str(path), "also there": strangers[:5]},
        remedy="choose another folder, or take the rest out of that one",
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target, Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise unwritable(owner="save", path=path, error=error) from error


@contextmanager
def replacing(path: str | os.PathLike[str], *, layout: Layout) -> Iterator[Path]:
    """Give a temporary folder beside `path` to write in, which takes its place at the end.

    Args:
        path: the folder; what a layout names is replaced, but for what may stand beside it and was
            not written anew.
        layout: names of the files.

    Raises:
        ValueError: if `path` holds anything else.
        OSError: if the place cannot be written; whatever was there is untouched.
    """
    target, staging = _staged(path, layout=layout)
    try:
        yield staging
        for name in layout.beside:
            if (target / name).is_file():
                shutil.copy2(target / name, staging / name)
        _put_in_place(staging=staging, target=target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_tensors(
    tensors: dict[str, Tensor], path: Path, *, target: str | os.PathLike[str]
) -> None:
    """Write a safetensors file.

    Args:
        tensors: by name.
        path: the file.
        target: the folder as the user named it, for messages.

    Raises:
        OSError: if it cannot be written whole.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if any(map(is_mapped, plain.values())):  # they may be more than there is memory for
        with TensorWriter(path=path, outlines=plain) as file:
            for name, tensor in plain.items():
                file.append(name, tensor)
        return
    try:
        # The note tells loaders of transformers which library the tensors are for.
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, for one
        message = f"save: {path.name} must be written whole, got path={str(target)!r} ({error})"
        raise OSError(f"{message}; make room or choose another place.") from error


def write_header(header: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file.

    Args:
        header: what it holds.
        path: the file.
    """
    path.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def _put_in_place(*, staging: Path, target: Path) -> None:
    staging.chmod(0o755)
    if not target.exists():
        staging.rename(target)
        return
    if not any(target.iterdir()):
        target.rmdir()
        staging.rename(target)
        return
    old = staging.with_name(f"{staging.name}-old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def checksum(path: Path) -> str:
    """Give the sha256 of a file, in hexadecimal.

    Args:
        path: the file.
    """
    return sha256_of(path)


def require_files(path: str | os.PathLike[str], *, layout: Layout, owner: str) -> Path:
    """Give the folder, or refuse one that lacks a file.

    Args:
        path: the folder.
        layout: names of the files.
        owner: who asks.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
    """
    folder = Path(path)
    names = (layout.header, layout.tensors)
    for name in names:
        if not (folder / name).is_file():
            message = (
                f"{owner}: a {layout.what} has {' and '.join(names)}, got path={str(folder)!r}"
            )
            raise FileNotFoundError(f"{message} without {name}; pass a folder written by save().")
    return folder


def read_header(path: Path, *, owner: str) -> dict[str, Any]:
    """Read the JSON file of a folder.

    Args:
        path: the file.
        owner: who reads.

    Raises:
        ValueError: if it is not a JSON object.
    """
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        message = f"{owner}: {path.name} must be JSON, got path={str(path)!r} ({error})"
        raise ValueError(f"{message}; save the {path.stem} again.") from error
    require(
        ok=isinstance(header, dict),
        owner=owner,
        rule=f"{path.name} must hold a JSON object",
        got={"content": header},
        remedy="pass a folder written by save()",
    )
    return dict(header)


def require_checksum(path: Path, *, sha256: str, header: str, owner: str) -> None:
    """Refuse a file that is not the one that was written.

    Args:
        path: the file.
        sha256: its checksum.
        header: name of the file that records the checksum.
        owner: who asks.

    Raises:
        ValueError: if it has another checksum.
    """
    found = checksum(path)
    require(
        ok=found == sha256,
        owner=owner,
        rule=f"{path.name} must have the sha256 that {header} records, {sha256}",
        got={"sha256": found},
        remedy="the file is damaged or was exchanged: restore it or save it again",
    )


def read_tensors(
    path: Path, *, sha256: str, header: str, in_place: Collection[str], owner: str
) -> dict[str, Tensor]:
    """Read a safetensors file whose checksum is known.

    Args:
        path: the file.
        sha256: its checksum.
        header: name of the file that records the checksum.
        in_place: names of tensors that are left in the file, and read when they are looked at.
        owner: who reads.

    Raises:
        ValueError: if the file is damaged.
    """
    require_checksum(path, sha256=sha256, header=header, owner=owner)
    try:
        with safe_open(path, framework="pt") as file:
            # Copied out of the file's pages, where tensors do not lie as torch's own do: matrix
            # products of the same numbers may differ in the last bit with where they lie.
            names = [name for name in file.keys() if name not in in_place]  # noqa: SIM118
            found = {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        message = f"{owner}: {path.name} must be a safetensors file, got path={str(path)!r}"
        raise ValueError(f"{message} ({error}); restore the file.") from error
    left = mapped_tensors(path) if in_place else {}
    return found | {name: tensor for name, tensor in left.items() if name in in_place}
