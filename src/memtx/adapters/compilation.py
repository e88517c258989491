"""Compiled arithmetic for a base and the memory in it; hooks and modules stay as they are."""

import functools
import sys
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from memtx.adapters.families import decoder_layers
from memtx.adapters.insertion import Insertion


def compile_parts(model: nn.Module) -> None:
    """Compile what lies between the hooks of a model: norms, attention, MLP and memory reads.

    Whole layers are not for `torch.compile`: it does not look at which hooks a module carries, so
    layers that are alike share one compiled form, and with it the memory of the first of them,
    without an error. The parts here have no hooks inside, so every layer keeps its own memory, and
    the memory can still be switched off or removed. The first calls of each kind and shape
    compile. Calling it twice changes nothing more.

    Args:
        model: a `MemoryAdapter` or `MemoryLibrary`, or a Hugging Face causal language model or PEFT
            model of one.
    """
    for part in _parts(model):
        if "forward" not in vars(part):
            # A method, so that a deep copy of the model calls its own parts.
            vars(part)["forward"] = MethodType(_compiled(type(part).forward), part)


def uncompile_parts(model: nn.Module) -> None:
    """Undo `compile_parts`, leaving no trace in the model.

    Args:
        model: what was passed to `compile_parts`.
    """
    for part in _parts(model):
        own: Any = vars(part).get("forward")
        # What was made is looked up: asking for the form of a part would compile it.
        if getattr(own, "__func__", None) in _made:
            del vars(part)["forward"]


def forget_compiled() -> None:
    """Let torch compile anew what it compiled before, as the hooks of a base are about to change.

    A form compiled while a module had no hooks is not looked at again when it gets some: a base
    that was compiled (which `generate` does by itself with a static cache on a GPU) would go on
    without the memory, without an error. What was compiled for others is made again as well.
    """
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and asking would load it all
        torch.compiler.reset()


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    base: Any = getattr(model, "base", model) if _carries_memory(model) else model
    for layer in decoder_layers(base):
        yield from layer.children()
    for part in model.modules():
        # A read that asks for its context leaves there what it did, which cannot be compiled.
        if isinstance(part, Insertion) and not part.asks_for_context:
            yield part


def _carries_memory(model: nn.Module) -> bool:
    return hasattr(model, "insertions") or hasattr(model, "memories")


# Every form that was put into a part.
_made: set[Callable[..., Any]] = set()


@functools.cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    form = torch.compile(forward)
    _made.add(form)
    return form
