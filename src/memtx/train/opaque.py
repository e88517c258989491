"""Handing a `Context` to a unit without torch looking into it."""

from typing import Any, final

from torch import nn

from memtx.context import Context


@final
class _Box:
    """Holds a context where a search for tensors sees nothing."""

    def __init__(self, *, context: Context) -> None:
        self.context = context


def pass_contexts_by(unit: nn.Module) -> None:
    """Let a unit's hooks of FSDP2 leave a `Context` among the arguments alone.

    Some versions of torch look for tensors in dataclasses and then call the unit with a copy of
    the `Context`: what the routers of the unit choose would be noted in the copy, and their losses
    would be lost without a word.

    Args:
        unit: a module to which `fully_shard` was applied, so that its hooks are there already.
    """
    unit.register_forward_pre_hook(_pack, prepend=True, with_kwargs=True)
    unit.register_forward_pre_hook(_unpack, prepend=False, with_kwargs=True)


def _pack(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    return tuple(_boxed(each) for each in args), {k: _boxed(each) for k, each in kwargs.items()}


def _unpack(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    return tuple(_opened(each) for each in args), {k: _opened(each) for k, each in kwargs.items()}


def _boxed(value: object) -> object:
    return _Box(context=value) if isinstance(value, Context) else value


def _opened(value: object) -> object:
    return value.context if isinstance(value, _Box) else value
