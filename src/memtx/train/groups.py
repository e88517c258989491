"""Parameter groups that together hold every trainable parameter exactly once."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import nn

from memtx.checks import refusal, require


@final
@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate: those of some modules without those of others.

    Modules are named, not tensors, because sharding replaces the tensors of a module. A group
    with a learning rate of 0.0 is frozen: it needs no gradient, has no moments and does not decay.

    Args:
        name: what the group is called in messages and logs.
        modules: the trainable parameters of these; of a frozen group, all of them.
        without: except the parameters of these.
        learning_rate: at the schedule's factor 1; 0.0 freezes the group.
        weight_decay: as the optimizer applies it.

    Raises:
        ValueError: if a rate is negative.

    Source: torchtitan's and torchtune's parameter groups.

    Example:
        >>> from torch import nn
        >>> ParameterGroup(name="all", modules=[nn.Linear(2, 2)], without=[],
        ...                learning_rate=1e-3, weight_decay=0.0).name
        'all'
    """

    name: str
    modules: list[nn.Module]
    without: list[nn.Module]
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        require(
            ok=0.0 <= self.learning_rate < math.inf and 0.0 <= self.weight_decay < math.inf,
            owner=self,
            rule="learning_rate and weight_decay must be finite and not negative",
            got={"learning_rate": self.learning_rate, "weight_decay": self.weight_decay},
            remedy="pass 0.0 to switch one off",
        )

    @property
    def frozen(self) -> bool:
        """Whether the group stays as it is."""
        return self.learning_rate == 0.0

    def parameters(self) -> list[nn.Parameter]:
        """Give the parameters of the group as they are now, each once."""
        outside = {id(p) for module in self.without for p in module.parameters()}
        found = {
            id(p): p
            for module in self.modules
            for p in module.parameters()
            if (p.requires_grad or self.frozen) and id(p) not in outside
        }
        return list(found.values())


def check_partition(*, model: nn.Module, groups: list[ParameterGroup]) -> None:
    """Require that the groups hold every trainable parameter of a model exactly once.

    Args:
        model: the model.
        groups: its groups.

    Raises:
        ValueError: if a parameter is in no group, in two, or a group holds none; parameters are
            named.
    """
    owners: dict[int, list[str]] = {}
    for group in groups:
        members = group.parameters()
        require(
            ok=bool(members),
            owner="ParameterGroup",
            rule="a group must hold at least one trainable parameter",
            got={"name": group.name},
            remedy="remove the group, or make its parameters trainable",
        )
        for parameter in members:
            owners.setdefault(id(parameter), []).append(group.name)
    names = {id(p): name for name, p in model.named_parameters()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    trouble = {
        "left out": [names[key] for key in names if key in trained and key not in owners],
        "in several": [names.get(key, "?") for key, held in owners.items() if len(held) > 1],
        "not the model's": sorted(
            {h for k, held in owners.items() if k not in names for h in held}
        ),
    }
    if any(trouble.values()):
        message = refusal(
            owner="ParameterGroup",
            rule="groups must hold every trainable parameter of the model exactly once",
            got={key: value[:5] for key, value in trouble.items() if value},
            remedy="set modules and without so that the groups partition them",
        )
        raise ValueError(message)


@contextmanager
def freezing(groups: Sequence[ParameterGroup]) -> Iterator[None]:
    """Let the parameters of frozen groups need no gradient inside a `with` block.

    Args:
        groups: all groups; those with a rate are left as they are.
    """
    frozen = [group for group in groups if group.frozen]
    ids = {id(p) for group in frozen for p in group.parameters() if p.requires_grad}
    # By module and name: sharding inside of the block replaces the tensors.
    places = [
        (module, name)
        for group in frozen
        for root in group.modules
        for module in root.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in ids
    ]
    try:
        for module, name in places:
            module.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for module, name in places:
            module.get_parameter(name).requires_grad_(True)


def group_table(groups: list[ParameterGroup]) -> str:
    """Write the groups as a table: name, tensors, parameters, learning rate, weight decay.

    Args:
        groups: the groups.
    """
    lines = [f"{'group':<16}{'tensors':>8}{'parameters':>14}{'lr':>11}{'decay':>8}"]
    for group in groups:
        members = group.parameters()
        count = sum(p.numel() for p in members)
        rates = f"{group.learning_rate:>11.2e}{group.weight_decay:>8.3f}"
        rates = f"{'frozen':>11}{'-':>8}" if group.frozen else rates
        lines.append(f"{group.name:<16}{len(members):>8}{count:>14,}{rates}")
    return "\n".join(lines)
