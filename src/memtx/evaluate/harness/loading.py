"""Models and tokenizers from the arguments of a command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memtx.adapters import MemoryAdapter
from memtx.checks import require
from memtx.spec import load


def from_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Load what `path`, `base`, `tokenizer`, `dtype` and `device` name; leave the rest as it is.

    Args:
        arguments: `path`, a saved memory or whole model; `base`, the model that a memory was
            trained on, which is loaded from the hub where the memory names it and this does not;
            `tokenizer`, else that of the base, else that beside the model; `dtype`, else as it was
            saved; `device`, else a GPU where there is one.

    Raises:
        ValueError: if there is no `path`, or a whole model is given a base.
    """
    left = dict(arguments)
    path, base, tokenizer, dtype, device = (
        left.pop(name, None) for name in ("path", "base", "tokenizer", "dtype", "device")
    )
    require(
        ok=isinstance(path, str),
        owner="MemtxLM",
        rule="model_args must name the path of a memory or of a whole model",
        got={"path": path, "model_args": sorted(arguments)},
        remedy="pass --model_args path=FOLDER, and base=MODEL for a memory",
    )
    model = _model(str(path), base=base, dtype=dtype)
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    return {
        "model": model.to(kind),
        "tokenizer": _tokenizer(tokenizer, base=base, path=str(path), model=model),
        **left,
    }


def _model(path: str, *, base: str | None, dtype: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    if (Path(path) / "config.json").is_file():
        require(
            ok=base is None,
            owner="MemtxLM",
            rule="a whole model has no base",
            got={"path": path, "base": base},
            remedy="leave base out",
        )
        whole = load(path)
        return whole if dtype in (None, "auto") else whole.to(getattr(torch, str(dtype)))
    found = None
    if base is not None:
        found = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    return MemoryAdapter.from_pretrained(path, base=found)


def _tokenizer(name: str | None, *, base: str | None, path: str, model: Any) -> Any:
    from transformers import AutoTokenizer

    beside = getattr(model, "base", None)
    # A base that the memory named itself knows where it came from.
    origin = path if beside is None else beside.config.name_or_path
    return AutoTokenizer.from_pretrained(name or base or origin)
