"""Whether a saved folder is sound, found out without running it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from memtx.adapters import Insertion
from memtx.checks import require
from memtx.memory.owned import check_banks
from memtx.spec import lora
from memtx.spec.artifact import (
    MEMORY,
    MODEL,
    PREFIX,
    check_model_header,
    memory_of_parts,
    memory_parts,
    outline_of_model,
    require_spec,
)
from memtx.spec.builder import RecordedBase
from memtx.spec.files import read_header, require_checksum, require_files
from memtx.spec.header import check_header, dtypes
from memtx.spec.tensors import compare, outlines, tensors_of

OWNER = "verify"


def verify(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Look at a saved memory or whole model: its spec, checksums, names, shapes and dtypes.

    Nothing of it is run and no number of it is loaded. What it cannot see is whether a base is the
    one it was trained on: `load_adapter` does.

    Args:
        path: a folder that `save` or `push_to_hub` wrote.

    Returns:
        `path`, `kind` ("memory" or "model"), `sound`, the `trouble` found as a list of messages,
        and where the header could be read what it tells: `base`, `dtype`, `sha256`, `lora`,
        `training`, `memtx`.

    Example:
        >>> verify("no/such/folder")["sound"]
        False
    """
    folder = Path(path)
    is_model = (folder / MODEL.header).is_file() and not (folder / MEMORY.header).is_file()
    report: dict[str, Any] = {"path": str(path), "kind": "model" if is_model else "memory"}
    trouble: list[str] = []
    header = _try(trouble, lambda: _header(folder, is_model=is_model))
    if header is not None:
        report |= _told(header)
        layout = MODEL if is_model else MEMORY
        tensors = folder / layout.tensors
        _try(
            trouble,
            lambda: require_checksum(
                tensors, sha256=header["sha256"], header=layout.header, owner=OWNER
            ),
        )
        outline = _try(trouble, lambda: outlines(tensors, owner=OWNER))
        wanted = _try(trouble, lambda: _wanted(header, is_model=is_model))
        if is_model:
            _try(trouble, lambda: require_spec(header, owner=OWNER))
        if outline is not None:
            report["dtype"] = dtypes(outline)
            if wanted is not None:
                _try(trouble, lambda: _require_tensors(header, wanted=wanted, given=outline))
        if not is_model:
            _try(trouble, lambda: lora.require_lora(folder, record=header["lora"], owner=OWNER))
    return report | {"sound": not trouble, "trouble": trouble}


def _try(trouble: list[str], look: Callable[[], Any]) -> Any:
    """Look, and note what was refused: one look says everything that is wrong."""
    try:
        return look()
    except (ValueError, OSError) as error:
        trouble.append(str(error))
    except (TypeError, KeyError, AttributeError, IndexError) as error:  # of a form unthought of
        trouble.append(f"{OWNER}: the header must be as save() writes it, got error={error!r}")
    return None


def _header(folder: Path, *, is_model: bool) -> dict[str, Any]:
    layout = MODEL if is_model else MEMORY
    require_files(folder, layout=layout, owner=OWNER)
    header = read_header(folder / layout.header, owner=OWNER)
    if is_model:
        check_model_header(header, owner=OWNER)
    else:
        check_header(header, owner=OWNER)
    return header


def _told(header: dict[str, Any]) -> dict[str, Any]:
    kept = ("sha256", "memtx", "lora", "training")
    told: dict[str, Any] = {key: header[key] for key in kept if key in header}
    if isinstance(header.get("base"), dict):
        told["base"] = {key: each for key, each in header["base"].items() if key != "weights"}
    return told


def _wanted(header: dict[str, Any], *, is_model: bool) -> dict[str, Tensor]:
    if is_model:
        model = outline_of_model(header["spec"], owner=OWNER)
        return {PREFIX + name: tensor for name, tensor in tensors_of(model).items()}
    base = RecordedBase()
    parts = memory_parts(header["spec"], base=base, owner=OWNER)
    _require_places(parts["insertions"], sizes=header["base"]["sizes"])
    check_banks(
        owner=OWNER, banks=parts["banks"], readers=parts["insertions"], reader="an insertion"
    )
    require(
        ok=all(base.recorded.get(key) == header["base"][key] for key in ("architecture", "sizes")),
        owner=OWNER,
        rule="spec and base of memory.json must name one base",
        got={"spec": base.recorded, "base": header["base"]["architecture"]},
        remedy="save the memory again",
    )
    return tensors_of(memory_of_parts(parts))


def _require_places(insertions: list[Insertion], *, sizes: dict[str, Any]) -> None:
    """What a `MemoryAdapter` asks of its base, asked of the sizes that are recorded of it."""
    for insertion in insertions:
        got = {"layer": insertion.layer, "dim": insertion.dim}
        require(
            ok=insertion.layer < sizes["num_hidden_layers"]
            and insertion.dim == sizes["hidden_size"],
            owner=OWNER,
            rule="an insertion must lie in a layer of the recorded base and have its hidden size",
            got={**got, "sizes": sizes},
            remedy="save the memory again",
        )
    places = [(insertion.layer, insertion.site) for insertion in insertions]
    require(
        ok=len(set(places)) == len(places),
        owner=OWNER,
        rule="only one insertion may stand at each layer and site",
        got={"places": [(layer, str(site)) for layer, site in places]},
        remedy="save the memory again",
    )


def _require_tensors(
    header: dict[str, Any], *, wanted: dict[str, Tensor], given: dict[str, Tensor]
) -> None:
    recorded = header.get("dtype")
    is_memory = "header_sha256" in header
    layout = MEMORY if is_memory else MODEL
    compare(wanted=wanted, given=given, name=layout.tensors, owner=OWNER)
    require(
        ok=not is_memory or recorded == dtypes(given),
        owner=OWNER,
        rule=f"{layout.tensors} must hold as many numbers of each dtype as {layout.header} records",
        got={"file": dtypes(given), "recorded": recorded},
        remedy="save the memory again",
    )
