"""What a generation must be like where routers choose from the prompt."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from memtx.checks import require
from memtx.memory.strategies import PromptRouting
from memtx.memory.windows import HybridRouting


def asking_for_prompt(parts: Iterable[nn.Module]) -> list[object]:
    """Give the strategies that choose from the prompt.

    Args:
        parts: the modules of a model or memory.
    """
    strategies = [getattr(part, "strategy", None) for part in parts]
    return [each for each in strategies if isinstance(each, PromptRouting | HybridRouting)]


def require_one_prompt(
    *,
    owner: object,
    parts: Iterable[nn.Module],
    config: Any,
    args: Sequence[Any],
    options: Mapping[str, Any],
) -> None:
    """Refuse a generation that cannot tell the prompt from what is generated.

    Args:
        owner: who generates.
        parts: the modules that are read.
        config: the model's own generation configuration.
        args: the positional arguments of `generate`.
        options: the others.

    Raises:
        ValueError: if a router chooses from the prompt, and the generation has no cache or reads
            the prompt in chunks.
    """
    asking = asking_for_prompt(parts)
    if not asking:
        return
    given = args[1] if len(args) > 1 else options.get("generation_config")
    known = config if given is None else given

    def option(name: str) -> Any:
        value = options.get(name)
        return getattr(known, name, None) if value is None else value

    require(
        ok=option("use_cache") is not False,
        owner=owner,
        rule="a model whose routers choose from the prompt must generate with a cache, which "
        "tells the prompt from what was generated",
        got={"use_cache": False, "strategies": asking[:1]},
        remedy="pass use_cache=True, or use RollingRouting or TokenRouting",
    )
    chunk = option("prefill_chunk_size")
    require(
        ok=chunk is None,
        owner=owner,
        rule="a model whose routers choose from the prompt must read it in one call: what comes "
        "later counts as generated",
        got={"prefill_chunk_size": chunk, "strategies": asking[:1]},
        remedy="leave prefill_chunk_size out, or use RollingRouting or TokenRouting",
    )
