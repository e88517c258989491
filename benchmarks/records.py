"""How a benchmark's numbers are kept: one JSON file of records, with where and when they arose."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


def write_records(
    *, folder: Path, name: str, device: torch.device, libraries: list[str], records: list[Record]
) -> Path:
    """Write `NAME.json` into a folder: machine, versions, date (UTC) and the records."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "machine": machine(device),
        "versions": versions(libraries),
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "records": records,
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def kept_records(path: Path, new: Sequence[Record], *, keys: Sequence[str]) -> list[Record]:
    """Give the records of an earlier file that are not measured anew.

    Args:
        path: the file; none may be there.
        new: the records that were measured now.
        keys: what tells one record from another.
    """
    if not path.is_file():
        return []
    measured = [[record[key] for key in keys] for record in new]
    found: list[Record] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return [record for record in found if [record.get(key) for key in keys] not in measured]


def machine(device: torch.device) -> str:
    """Say what ran it; never by the name of a host."""
    host = f"{os.cpu_count()} CPU cores ({platform.machine()}), {platform.system()}"
    if device.type != "cuda":
        return f"{host}, {torch.get_num_threads()} threads"
    gpu = torch.cuda.get_device_properties(device)
    return f"{gpu.name} ({gpu.total_memory / 2**30:.1f} GiB), {host}"


def versions(libraries: list[str]) -> dict[str, str | None]:
    """Give the versions of Python, CUDA and some libraries; None where one is not installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
