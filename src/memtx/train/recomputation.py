"""Activation checkpointing: layers that run again in the backward pass, as callbacks."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memtx.adapters import MemoryAdapter, MemoryLibrary
from memtx.adapters.checkpointing import switch_off, switch_on
from memtx.checks import require
from memtx.context import Context
from memtx.modes import is_recomputing
from memtx.train.loggers import Record
from memtx.train.run import Run


@final
@dataclass(frozen=True, kw_only=True)
class RecomputedLayers:
    """Layers of a memtx model run again in the backward pass; their activations are not kept.

    A callback of the trainer, in force while the run lasts. It costs a forward of these layers and
    changes no number; the model, its names and what is saved of it stay as they are.

    Args:
        layers: some or all of `model.layers`, of a `MemoryTransformer` or `TensorMemoryLM`.

    Raises:
        ValueError: if there is no layer, or one is given twice.

    Source: Chen et al. 2016 (arXiv 1604.06174), torch's checkpoint without reentry.

    Example:
        >>> from torch import nn
        >>> len(RecomputedLayers(layers=[nn.Identity(), nn.Identity()]).layers)
        2
    """

    layers: Sequence[nn.Module]

    def __post_init__(self) -> None:
        distinct = len({id(layer) for layer in self.layers})
        require(
            ok=0 < distinct == len(self.layers),
            owner=self,
            rule="layers must be at least one, each given once",
            got={"layers": len(self.layers), "distinct": distinct},
            remedy="pass model.layers, or some of them",
        )

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Recompute inside of a `with` block.

        Args:
            run: the run, whose model must have the layers.

        Raises:
            ValueError: if a layer is not one of the model's own `layers`.
        """
        model = run.objective.model
        own = {id(layer) for layer in getattr(model, "layers", [])}
        strangers = sum(id(layer) not in own for layer in self.layers)
        require(
            ok=strangers == 0,
            owner=self,
            rule="layers must be among model.layers of the model that is trained",
            got={"model": type(model).__name__, "strangers": strangers},
            remedy="pass its layers; for a pretrained model use RecomputedBase",
        )
        with ExitStack() as patched:
            for layer in self.layers:
                patched.enter_context(_recomputing(layer))
            yield

    def after_step(self, run: Run, record: Record) -> None:
        """Do nothing.

        Args:
            run: not used.
            record: not used.
        """

    def is_urgent(self, step: int) -> bool:
        """Tell that it can be told of any step later.

        Args:
            step: not used.
        """
        return False

    def state_dict(self) -> dict[str, object]:
        """Give nothing: nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up nothing.

        Args:
            state: not used.
        """


@contextmanager
def _recomputing(layer: nn.Module) -> Iterator[None]:
    """Let a layer's forward go through a checkpoint; hooks on its call stay outside of it."""
    plain: Any = layer.forward

    def again(x: Tensor, context: Context | None) -> Tensor:
        if context is not None and is_recomputing():
            # What the routers chose is noted already.
            context = replace(context, routings=[])
        result: Tensor = plain(x, context)
        return result

    def forward(x: Tensor, context: Context | None) -> Any:
        # With a cache nothing is trained, and a second run would fill it twice.
        if not torch.is_grad_enabled() or (context is not None and context.cache is not None):
            return plain(x, context)
        return checkpoint(again, x, context, use_reentrant=False)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@final
@dataclass(frozen=True, kw_only=True)
class RecomputedBase:
    """The layers of a pretrained model run again in the backward pass, with the memory in them.

    A callback of the trainer, in force while the run lasts. The library's own switch is used.

    Args:
        model: a `MemoryAdapter`, a `MemoryLibrary`, or a Hugging Face model.

    Raises:
        ValueError: if the model has no such switch.

    Source: transformers' `gradient_checkpointing_enable`, without reentry.

    Example:
        >>> RecomputedBase.__name__  # needs a pretrained model
        'RecomputedBase'
    """

    model: nn.Module

    def __post_init__(self) -> None:
        require(
            ok=hasattr(self.model, "gradient_checkpointing_enable"),
            owner=self,
            rule="model must be a MemoryAdapter or a Hugging Face model",
            got={"model": type(self.model).__name__},
            remedy="use RecomputedLayers for a model of memtx",
        )

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Recompute inside of a `with` block.

        Args:
            run: not used.
        """
        model = self.model
        if isinstance(model, MemoryAdapter | MemoryLibrary):
            model.activation_checkpointing_enable()
        else:
            switch_on(base=model, options={"use_reentrant": False}, wrap=None, how={})
        try:
            yield
        finally:
            if isinstance(model, MemoryAdapter | MemoryLibrary):
                model.activation_checkpointing_disable()
            else:
                switch_off(model)

    def after_step(self, run: Run, record: Record) -> None:
        """Do nothing.

        Args:
            run: not used.
            record: not used.
        """

    def is_urgent(self, step: int) -> bool:
        """Tell that it can be told of any step later.

        Args:
            step: not used.
        """
        return False

    def state_dict(self) -> dict[str, object]:
        """Give nothing: nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up nothing.

        Args:
            state: not used.
        """
