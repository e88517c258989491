"""Which modules are gathered and freed as one when a model lies in parts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from torch import nn

from memtx.adapters import MemoryAdapter
from memtx.adapters.families import decoder_layers
from memtx.checks import refusal, require
from memtx.models import MemoryTransformer, TensorMemoryLM


@runtime_checkable
class Units(Protocol):
    """Names the modules of a model whose parameters are gathered together, before their call."""

    def of(self, model: nn.Module) -> list[nn.Module]:
        """Give the units of a model, in the order of their calls, each once."""


@final
@dataclass(frozen=True, kw_only=True)
class LayersAsUnits:
    """Each layer is a unit: the blocks of a memtx model, the decoder layers of a pretrained one.

    What is no layer (embedding, banks, insertions of an adapter, norm and head) is the rest, which
    stays gathered from the start of a forward to the end of the backward pass.

    Args:
        None: it takes no arguments.

    Source: torchtitan's and transformers' wrapping of decoder layers.

    Example:
        >>> LayersAsUnits()
        LayersAsUnits()
    """

    def of(self, model: nn.Module) -> list[nn.Module]:
        """Give the layers of a model, each once.

        Args:
            model: a model of memtx, an adapter, or a pretrained model with or without PEFT.

        Raises:
            ValueError: if it is not known where the layers of the model are.
        """
        if isinstance(model, MemoryTransformer | TensorMemoryLM):
            return _once(list(model.layers))
        base = model.base if isinstance(model, MemoryAdapter) else model
        try:
            return _once(list(decoder_layers(base)))
        except ValueError as error:
            message = refusal(
                owner=self,
                rule="it must be known where the layers of the model are",
                got={"model": type(base).__name__},
                remedy="name them: ModulesAsUnits(modules=[...])",
            )
            raise ValueError(message) from error


@final
@dataclass(frozen=True, kw_only=True)
class ModulesAsUnits:
    """The named modules are the units; none, and the whole model is gathered as one.

    Args:
        modules: modules of the model, each with a forward that is called.

    Source: FSDP2's own composition: `fully_shard` on each of some modules, then on the root.

    Example:
        >>> ModulesAsUnits(modules=[]).of(nn.Linear(1, 1))
        []
    """

    modules: Sequence[nn.Module]

    def of(self, model: nn.Module) -> list[nn.Module]:
        """Give the modules, each once.

        Args:
            model: the model.

        Raises:
            ValueError: if one is not a part of the model.
        """
        parts = {id(part) for part in model.modules()}
        strange = [type(each).__name__ for each in self.modules if id(each) not in parts]
        require(
            ok=not strange,
            owner=self,
            rule="modules must be parts of the model that is trained",
            got={"not parts of it": strange[:5]},
            remedy="take them from the model itself",
        )
        return _once(list(self.modules))


def _once(modules: list[nn.Module]) -> list[nn.Module]:
    return list({id(module): module for module in modules}.values())


def held_outside(root: nn.Module, *, units: Sequence[nn.Module]) -> set[nn.Parameter]:
    """Give the parameters of which the units are not the only owners: those belong to the root.

    A bank that several blocks read must not belong to one of them, which would free it and send
    its gradient off while the others still add to it.

    Args:
        root: the module that is called.
        units: modules in it.

    Raises:
        ValueError: if a unit is inside of another, or several units share a parameter that nothing
            outside of them holds.
    """
    inside = {id(unit) for unit in units}
    nested = [
        type(part).__name__
        for unit in units
        for part in unit.modules()
        if part is not unit and id(part) in inside
    ]
    require(
        ok=not nested,
        owner="held_outside",
        rule="units must not contain one another",
        got={"inside of another": nested[:5]},
        remedy="name only the outer or only the inner ones",
    )
    outside = _outside(root, inside=inside)
    holders = Counter(parameter for unit in units for parameter in set(unit.parameters()))
    lost = {each for each, count in holders.items() if count > 1} - outside
    require(
        ok=not lost,
        owner="held_outside",
        rule="a parameter that several units share must be held outside of them as well",
        got={"shared": [name for name, each in root.named_parameters() if each in lost][:5]},
        remedy="leave these units out, or let the model hold the shared part, as it holds banks",
    )
    return outside & set(holders)


def _outside(root: nn.Module, *, inside: set[int]) -> set[nn.Parameter]:
    """Give the parameters that are reached from the root without entering a unit."""
    found: set[nn.Parameter] = set()
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if id(module) in seen or id(module) in inside:
            continue
        seen.add(id(module))
        found.update(module.parameters(recurse=False))
        waiting.extend(module.children())
    return found
