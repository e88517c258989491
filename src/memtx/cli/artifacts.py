"""Loading what a command line names: a saved memory with its base, or a whole model."""

from pathlib import Path
from typing import Any

from memtx.cli.command import CommandError


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
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, words = _memory(path, base=base) if is_memory else _whole(path)
        return model.to(device).eval(), _tokenizer(tokenizer or words, owner=owner)
    except (OSError, ValueError, ImportError) as error:
        # transformers tells in several lines.
        raise CommandError(f"{owner} {path}: {' '.join(str(error).split())}") from error


def _memory(path: Path, *, base: str | None) -> tuple[Any, str]:
    """Give an adapter, and where its tokenizer is."""
    from memtx.adapters import MemoryAdapter
    from memtx.spec import load_adapter

    if base is None:
        adapter = MemoryAdapter.from_pretrained(path)
        return adapter, str(adapter.config.name_or_path)
    from transformers import AutoModelForCausalLM

    return load_adapter(path, AutoModelForCausalLM.from_pretrained(base, dtype="auto")), base


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
            f"({' '.join(str(error).split())[:200]}); pass --tokenizer FOLDER."
        ) from error
