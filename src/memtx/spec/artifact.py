"""A memory as a folder of its own: tensors, and the spec that says what they are."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from memtx.adapters import MemoryAdapter
from memtx.checks import require, unwritable
from memtx.spec.builder import Builder
from memtx.spec.describe import check_format, describe

TENSORS = "memory.safetensors"
SPEC = "memory.json"


def save(model: MemoryAdapter, path: str | os.PathLike[str]) -> None:
    """Write the memory of an adapter as a folder: `memory.safetensors` and `memory.json`.

    The folder is written under a temporary name beside `path` and renamed, so that `path` is
    either what it was or the whole new memory. The base's weights are not written.

    Args:
        model: the adapter.
        path: the folder to write; a memory that is there already is replaced.

    Raises:
        ValueError: if `model` is no adapter, or `path` holds anything but a saved memory.
        OSError: if the place cannot be written; whatever was there is untouched.
    """
    require(
        ok=isinstance(model, MemoryAdapter),
        owner="save",
        rule="model must be a MemoryAdapter",
        got={"model": type(model).__name__},
        remedy="pass the adapter, not its base",
    )
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
    strangers = [name for name in strangers if name not in {SPEC, TENSORS}]
    require(
        ok=not strangers,
        owner="save",
        rule="path must be free, empty or hold a saved memory and nothing else",
        got={"path": str(path), "also there": strangers[:5]},
        remedy="choose another folder, or take the rest out of that one",
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise unwritable(owner="save", path=path, error=error) from error
    try:
        memory = _memory(banks=list(model.banks), insertions=list(model.insertions))
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(memory).items()
        }
        _write_tensors(tensors, staging / TENSORS, target=target)
        header = {"spec": describe(model), "sha256": _sha256(staging / TENSORS)}
        (staging / SPEC).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        _put_in_place(staging=staging, target=target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _memory(*, banks: list[nn.Module], insertions: list[nn.Module]) -> nn.Module:
    """Give all that a folder holds the tensors of, under the names they have in it."""
    parts = {"banks": banks, "insertions": insertions}
    return nn.ModuleDict({name: nn.ModuleList(modules) for name, modules in parts.items()})


def _tensors(memory: nn.Module) -> dict[str, Tensor]:
    """Give parameters and persistent buffers, a shared one under its first name alone."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in memory.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            tensors[name] = tensor
        seen.add(id(tensor))
    return tensors


def _write_tensors(tensors: dict[str, Tensor], path: Path, *, target: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # a full disk, for one
        message = f"save: {TENSORS} must be written whole, got path={str(target)!r} ({error})"
        raise OSError(f"{message}; make room or choose another place.") from error


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_adapter(path: str | os.PathLike[str], base: nn.Module) -> MemoryAdapter:
    """Put a saved memory into its base.

    Nothing is changed in `base` before spec, checksum, names, shapes and dtypes have all been
    found right.

    Args:
        path: a folder that `save` wrote.
        base: the pretrained model it was trained on, of the same architecture and sizes.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged, a tensor is missing, unexpected or of another shape, the
            spec is not sound, or `base` is another model.
    """
    folder = Path(path)
    for name in (SPEC, TENSORS):
        if not (folder / name).is_file():
            message = f"load_adapter: a memory has {SPEC} and {TENSORS}, got path={str(folder)!r}"
            raise FileNotFoundError(f"{message} without {name}; pass a folder written by save().")
    header = _read_header(folder / SPEC)
    tensors = _read_tensors(folder / TENSORS, sha256=header["sha256"])
    parts = _parts(header["spec"], base=base)
    memory = _memory(banks=parts["banks"], insertions=parts["insertions"])
    _compare(wanted=_tensors(memory), given=tensors)
    memory.load_state_dict(tensors, strict=False, assign=True)
    return MemoryAdapter(base=base, banks=parts["banks"], insertions=parts["insertions"])


def _parts(spec: dict[str, Any], *, base: nn.Module) -> dict[str, Any]:
    check_format(spec)
    builder = Builder(shared=spec["shared"], base=base)
    try:
        # On the meta device nothing is allocated: sizes that the file does not have cost nothing.
        with torch.device("meta"):
            cls, parts = builder.root_arguments(spec["model"])
    except (RuntimeError, TypeError) as error:  # torch's own, for more numbers than it can count
        message = "load_adapter: the spec must describe tensors that can be"
        got = str(error).partition("\n")[0]
        raise ValueError(f"{message}, got error={got!r}; save the memory again.") from error
    require(
        ok=cls is MemoryAdapter,
        owner="load_adapter",
        rule="the folder must hold a MemoryAdapter",
        got={"class": cls.__name__},
        remedy="load it with load()",
    )
    require(
        ok=parts["base"] is base,
        owner="load_adapter",
        rule="the spec must record the adapter's base as a base",
        got={"base": spec["model"]["arguments"]["base"]},
        remedy="pass a folder as save() wrote it",
    )
    return parts


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        message = f"load_adapter: {SPEC} must be JSON, got path={str(path)!r} ({error})"
        raise ValueError(f"{message}; save the memory again.") from error
    require(
        ok=isinstance(header, dict) and set(header) == {"spec", "sha256"},
        owner="load_adapter",
        rule=f"{SPEC} must hold 'spec' and 'sha256' and nothing else",
        got={"keys": sorted(header) if isinstance(header, dict) else header},
        remedy="pass a folder written by save()",
    )
    return dict(header)


def _read_tensors(path: Path, *, sha256: str) -> dict[str, Tensor]:
    found = _sha256(path)
    require(
        ok=found == sha256,
        owner="load_adapter",
        rule=f"{TENSORS} must have the sha256 that {SPEC} records, {sha256}",
        got={"sha256": found},
        remedy="the file is damaged or was exchanged: restore it or save the memory again",
    )
    try:
        with safe_open(path, framework="pt") as file:
            # Copied out of the file's pages, where tensors do not lie as torch's own do: matrix
            # products of the same numbers may differ in the last bit with where they lie.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        message = f"load_adapter: {TENSORS} must be a safetensors file, got path={str(path)!r}"
        raise ValueError(f"{message} ({error}); restore the file.") from error


def _compare(*, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shared = sorted(set(wanted) & set(given))
    trouble = {
        "missing": sorted(set(wanted) - set(given)),
        "unexpected": sorted(set(given) - set(wanted)),
        "mismatched": {
            name: {"spec": tuple(wanted[name].shape), "file": tuple(given[name].shape)}
            for name in shared
            if wanted[name].shape != given[name].shape
        },
        # A memory may have been trained in another floating dtype than it is built in.
        "not_floating": [
            name
            for name in shared
            if wanted[name].is_floating_point() and not given[name].is_floating_point()
        ],
        "of_another_dtype": {
            name: {"spec": str(wanted[name].dtype), "file": str(given[name].dtype)}
            for name in shared
            if not wanted[name].is_floating_point() and wanted[name].dtype != given[name].dtype
        },
    }
    require(
        ok=not any(trouble.values()),
        owner="load_adapter",
        rule=f"{TENSORS} must hold exactly the tensors of the spec",
        got={key: value for key, value in trouble.items() if value},
        remedy="load the folder as save() wrote it",
    )
