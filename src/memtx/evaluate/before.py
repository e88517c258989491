"""The model as it was before it learned, to compare it with itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from memtx.adapters import MemoryAdapter, MemoryLibrary
from memtx.adapters.families import is_peft
from memtx.checks import require
from memtx.modes import evaluating


@contextmanager
def before_learning(*, owner: str, model: Any, base: Any | None) -> Iterator[Any]:
    """Give the model as it was before it learned, inside a `with` block, in evaluation mode.

    Args:
        owner: who asks.
        model: the model that learned.
        base: another model, as it was; None switches off what `model` learned: the memories of an
            adapter or library (and a LoRA in its base unless it is frozen), or the adapter of a
            model of `peft`.

    Raises:
        ValueError: if `base` is part of `model`, or is None and nothing can be switched off.
    """
    holds = isinstance(model, MemoryAdapter | MemoryLibrary)
    if base is not None:
        require(
            ok=all(part is not base for part in model.modules()),
            owner=owner,
            rule="base must be another model, which nothing was put into",
            got={"base": type(base).__name__, "model": type(model).__name__},
            remedy="pass None to switch off what the model learned, or load the base again",
        )
        with evaluating(base):
            yield base
        return
    require(
        ok=holds or is_peft(model),
        owner=owner,
        rule="a model without a memory or an adapter of peft must be compared with another one",
        got={"model": type(model).__name__, "base": None},
        remedy="pass the model as it was before as base",
    )
    with ExitStack() as off:
        off.enter_context(evaluating(model))
        below = model.base if holds else model
        if holds:
            off.enter_context(model.disabled())
        trained = any(parameter.requires_grad for parameter in below.parameters())
        if is_peft(below) and (trained or not holds):
            off.enter_context(below.disable_adapter())
        yield model
