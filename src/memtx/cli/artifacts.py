"""Loading what a command line names: a saved memory with its base, or a whole model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memtx.cli.command import CommandError, flat


def pretrained(name: str, *, owner: str) -> tuple[Any, Any]:
    """Give a base and its tokenizer, on the CPU.

    Args:
        name: a folder, or an id of the hub.
        owner: the command, for messages.

    Raises:
        CommandError: if one cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _of_base(name, owner=owner):
        return _base(name), AutoTokenizer.from_pretrained(name)


def _base(name: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(name, dtype="auto")


@contextmanager
def _of_base(name: str, *, owner: str) -> Iterator[None]:
    """Tell in one line what is wrong with a base."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise CommandError(
            f"{owner}: --base must be a folder of a model and its tokenizer, or an id of the hub "
            f"that can be reached, got --base={name} ({flat(error)[:200]}); check it."
        ) from error


def loaded(path: Path, *, base: str | None, tokenizer: str | None, owner: str) -> tuple[Any, Any]:
    """Give a saved memory in its base, or a whole model, and its tokenizer; on a GPU where one is.

    Args:
        path: the folder.
        base: the memory's base, a folder or an id of the hub; None, the id that it records.
        tokenizer: a folder or an id; None, that of the base or of the whole model.
        owner: the command, for messages.

    Raises:
        CommandError: if something cannot be loaded.
    """
    is_memory = (path / "memory.json").is_file()
    if not is_memory and not (path / "config.json").is_file():
        raise CommandError(
            f"{owner}: PATH must be a folder with a saved memory or whole model, got PATH={path}; "
            f"name a folder that memtx wrote."
        )
    if base is not None and not is_memory:
        raise CommandError(
            f"{owner}: --base is for a memory, got base={base} with PATH={path}, a whole model; "
            f"leave it out."
        )
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, words = _memory(path, base=base, owner=owner) if is_memory else _whole(path)
        return model.to(device).eval(), _tokenizer(tokenizer or words, owner=owner)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        # transformers tells in several lines.
        raise CommandError(f"{owner} {path}: {flat(error)}") from error


def _memory(path: Path, *, base: str | None, owner: str) -> tuple[Any, str]:
    """Give an adapter, and where its tokenizer is."""
    from memtx.adapters import MemoryAdapter
    from memtx.spec import load_adapter

    if base is None:
        _require_recorded(path, owner=owner)
        adapter = MemoryAdapter.from_pretrained(path)
        return adapter, str(adapter.config.name_or_path)
    with _of_base(base, owner=owner):
        model = _base(base)
    return load_adapter(path, model), base


def _require_recorded(path: Path, *, owner: str) -> None:
    """Refuse to look for a base on the hub that did not come from there; any damage is told later.

    Args:
        path: of the memory.
        owner: the command, for messages.

    Raises:
        CommandError: if the memory records no id of the hub.
    """
    try:
        base = json.loads((path / "memory.json").read_text(encoding="utf-8"))["base"]
        name, architecture = base["id"], base["architecture"]
    except (ValueError, KeyError, TypeError):
        return
    if name is None:
        raise CommandError(
            f"{owner}: --base must be given where a memory's base did not come from the hub, got "
            f"PATH={path}, which was taught to a {architecture}; pass --base FOLDER."
        )


def _whole(path: Path) -> tuple[Any, str]:
    # Lets transformers know the type of model that its tokenizer stands beside.
    import memtx.huggingface  # noqa: F401
    from memtx.spec import load

    return load(path), str(path)


def _tokenizer(name: str, *, owner: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(
            f"{owner}: a tokenizer must be where the model is, got {name} "
            f"({flat(error)[:200]}); pass --tokenizer FOLDER."
        ) from error
