"""The tensors of a module, of a spec and of a file, and whether they are the same ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from memtx.checks import require
from memtx.memory import MappedMemoryBank
from memtx.ops.tensor_files import DTYPES


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Give parameters and persistent buffers, a shared one under its first name alone.

    Args:
        module: whose.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            tensors[name] = tensor
        seen.add(id(tensor))
    return tensors


def left_in_file(module: nn.Module, *, prefix: str) -> set[str]:
    """Give the names of tensors that are read where they lie: those of a `MappedMemoryBank`.

    Args:
        module: all that a file holds the tensors of.
        prefix: what stands before their names in the file.
    """
    parts = module.named_modules(remove_duplicate=False)
    banks = [(name, part) for name, part in parts if isinstance(part, MappedMemoryBank)]
    return {f"{prefix}{name}.{row}" for name, bank in banks for row in bank.row_names}


def outlines(path: Path, *, owner: str) -> dict[str, Tensor]:
    """Give the tensors of a file without their numbers.

    Args:
        path: a safetensors file.
        owner: who reads.

    Raises:
        ValueError: if it is no safetensors file, or holds a dtype that no memory has.
    """
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                require(
                    ok=part.get_dtype() in DTYPES,
                    owner=owner,
                    rule=f"the dtype of a tensor must be one of {', '.join(DTYPES)}",
                    got={"tensor": name, "dtype": part.get_dtype()},
                    remedy="save it again",
                )
                found[name] = torch.empty(
                    part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta"
                )
    except SafetensorError as error:
        message = f"{owner}: {path.name} must be a safetensors file, got path={str(path)!r}"
        raise ValueError(f"{message} ({error}); restore the file.") from error
    return found


def compare(
    *, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str, owner: str
) -> None:
    """Refuse tensors that are not exactly those of a spec.

    Args:
        wanted: those of the spec.
        given: those of the file.
        name: of the file.
        owner: who reads.

    Raises:
        ValueError: if one is missing, unexpected or of another shape or kind.
    """
    shared = sorted(set(wanted) & set(given))
    trouble = {
        "missing": sorted(set(wanted) - set(given)),
        "unexpected": sorted(set(given) - set(wanted)),
        "mismatched": {
            each: {"spec": tuple(wanted[each].shape), "file": tuple(given[each].shape)}
            for each in shared
            if wanted[each].shape != given[each].shape
        },
        # A memory may have been trained in another floating dtype than it is built in.
        "not_floating": [
            each
            for each in shared
            if wanted[each].is_floating_point() and not given[each].is_floating_point()
        ],
        "of_another_dtype": {
            each: {"spec": str(wanted[each].dtype), "file": str(given[each].dtype)}
            for each in shared
            if not wanted[each].is_floating_point() and wanted[each].dtype != given[each].dtype
        },
    }
    require(
        ok=not any(trouble.values()),
        owner=owner,
        rule=f"{name} must hold exactly the tensors of the spec",
        got={key: value for key, value in trouble.items() if value},
        remedy="load the folder as save() wrote it",
    )


def on_meta(build: Any, *, owner: str) -> Any:
    """Build the parts of a spec without allocating their numbers.

    Args:
        build: builds them.
        owner: who asks.

    Raises:
        ValueError: if the spec asks for more numbers than can be counted.
    """
    try:
        # Sizes that the file does not have cost nothing here.
        with torch.device("meta"):
            return build()
    except (RuntimeError, TypeError) as error:  # torch's own
        message = f"{owner}: the spec must describe tensors that can be"
        got = str(error).partition("\n")[0]
        raise ValueError(f"{message}, got error={got!r}; save it again.") from error
