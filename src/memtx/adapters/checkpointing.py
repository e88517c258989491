"""Gradient checkpointing of a base with memory in it."""

from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import noop_context_fn

from memtx.adapters.families import inner_model
from memtx.adapters.reading import Contexts

# Where transformers keeps, at each part that can be recomputed, how that is done.
_FUNCTION = "_gradient_checkpointing_func"

Wrap = Callable[[Callable[[], Contexts]], Callable[[], Contexts]]


@runtime_checkable
class Recomputing(Protocol):
    """A model with memory, whose base can be recomputed."""

    def recompute(self, options: dict[str, Any], how: dict[str, Any]) -> None:
        """Switch it on, with options of the checkpoints and of the base's own switch."""


def activation_checkpointing_enable(
    model: Recomputing,
    activation_checkpointing_kwargs: dict[str, Any] | None = None,
    every_n_layers: int | None = None,
    offload: bool | None = None,
) -> None:
    """Recompute the base's layers in the backward pass instead of keeping their activations.

    Each forward is recomputed as it was, whatever was switched, and whoever reads, by then.

    Args:
        model: the adapter or library.
        activation_checkpointing_kwargs: passed to `torch.utils.checkpoint`; absent, the kind
            without reentry is used; with `{"use_reentrant": True}` the embeddings are made to
            require a gradient, without which that kind drops the memory's. A routed memory and a
            library refuse that kind.
        every_n_layers: recompute one layer of so many; absent, every layer.
        offload: keep in the host's memory what is kept for it; absent, no.

    Raises:
        ValueError: if a memory is routed, or this is a library, and `use_reentrant` is true.
    """
    how = {"every_n_layers": every_n_layers, "offload": offload}
    model.recompute(
        {"use_reentrant": False, **(activation_checkpointing_kwargs or {})},
        # Older versions of transformers know neither.
        {name: value for name, value in how.items() if value is not None},
    )


def gradient_checkpointing_enable(
    model: Recomputing,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    every_n_layers: int | None = None,
    offload: bool | None = None,
) -> None:
    """Do what `activation_checkpointing_enable` does: its older name in transformers.

    Args:
        model: the adapter or library.
        gradient_checkpointing_kwargs: see there.
        every_n_layers: see there.
        offload: see there.

    Raises:
        ValueError: see there.
    """
    activation_checkpointing_enable(model, gradient_checkpointing_kwargs, every_n_layers, offload)


def switch_on(
    *, base: nn.Module, options: dict[str, Any], wrap: Wrap | None, how: dict[str, Any]
) -> None:
    """Recompute the base's layers in the backward pass instead of keeping their activations.

    Args:
        base: the model.
        options: passed to `torch.utils.checkpoint`; `use_reentrant` must be among them.
        wrap: makes of a `context_fn` one that repeats a forward as it was; None, if nothing need
            be known of it.
        how: passed to the base's own switch beside them.
    """
    model: Any = inner_model(base)
    # transformers asks for the embeddings' gradient in any case, which costs a backward pass
    # below the lowest read, and forgets the hook of an earlier call, which then stays for ever.
    model.disable_input_require_grads()
    _method(base, "enable")(options, **how)
    model.disable_input_require_grads()
    if options["use_reentrant"]:
        model.enable_input_require_grads()
    _guard_hooks()
    if wrap is not None:
        context_fn = wrap(options.get("context_fn", noop_context_fn))
        for module in model.modules():
            plain = vars(module).get(_FUNCTION)
            if plain is not None:
                vars(module)[_FUNCTION] = _Checkpoint(plain=plain, context_fn=context_fn)


def _guard_hooks() -> None:
    """Let torch look at the hooks of a module before it takes a compiled form of its like.

    It does not unless told. A checkpoint breaks the graph where a memory is read in front of the
    MLP, so that layers are compiled one by one: all would take the form of the first, and those
    without its hooks, or with others, would read nothing and learn nothing, without an error.
    """
    from torch._dynamo import config

    config.skip_nnmodule_hook_guards = False


@final
class _Checkpoint:
    """A layer's checkpoint, which recomputes with what was known in the forward.

    What is compiled is recomputed as it was traced, and takes no contexts.
    """

    def __init__(self, *, plain: Callable[..., Any], context_fn: Callable[[], Contexts]) -> None:
        self.plain = plain
        self.context_fn = context_fn

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.plain(function, *args)
        return self.plain(function, *args, context_fn=self.context_fn)


def switch_off(base: nn.Module) -> None:
    """Keep all activations again.

    Args:
        base: the model.
    """
    _method(base, "disable")()
    inner_model(base).disable_input_require_grads()  # type: ignore[operator]


def _method(base: nn.Module, action: str) -> Any:
    """Give the base's method, whose name newer versions of transformers changed."""
    model = inner_model(base)
    names = (f"activation_checkpointing_{action}", f"gradient_checkpointing_{action}")
    return next(getattr(model, name) for name in names if hasattr(model, name))
