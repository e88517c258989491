"""Optimizers of large banks: what was not read is not touched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn

from memtx.checks import require
from memtx.memory.sparse import row_parameter
from memtx.train.groups import ParameterGroup
from memtx.train.optimizer import AdamW, Optimizer

# Settings of torch's AdamW that hold for all groups.
_KEPT = ("betas", "eps", "fused")


@runtime_checkable
class RowRule(Protocol):
    """How rows learn from sparse gradients."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make torch's optimizer of some of its parameter groups."""


@final
@dataclass(frozen=True, kw_only=True)
class RowSGD:
    """Plain gradient descent: exact, and without state. A row that was not read stays as it is.

    Args:
        None: it takes no arguments.

    Source: torch's `SGD`, without momentum.

    Example:
        >>> RowSGD()
        RowSGD()
    """

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimizer.

        Args:
            groups: torch's parameter groups.
        """
        return torch.optim.SGD(groups)


@final
@dataclass(frozen=True, kw_only=True)
class RowAdagrad:
    """Adagrad: exact. A gradient of zero moves neither a row nor its sum of squares.

    Args:
        eps: added to the root of the sum of squares.

    Raises:
        ValueError: if `eps` is not positive.

    Source: Duchi et al. 2011, torch's implementation; the usual choice for large embeddings.

    Example:
        >>> RowAdagrad(eps=1e-10).eps
        1e-10
    """

    eps: float

    def __post_init__(self) -> None:
        _check_eps(self, eps=self.eps)

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimizer.

        Args:
            groups: torch's parameter groups.
        """
        return torch.optim.Adagrad(groups, eps=self.eps)


@final
@dataclass(frozen=True, kw_only=True)
class RowAdam:
    """Adam whose moments move only where a row was read: **not** what Adam does to a bank.

    Adam moves a row by its remembered gradient in every step, read or not, and lets both moments
    decay. Here a row that is not read keeps its place and its moments until it is read again.

    Args:
        betas: decay of the first and second moment, counted in steps that read the row.
        eps: added to the root of the second moment.

    Raises:
        ValueError: if `eps` is not positive.

    Source: torch's `SparseAdam`, which calls itself lazy.

    Example:
        >>> RowAdam(betas=(0.9, 0.95), eps=1e-8).eps
        1e-08
    """

    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        _check_eps(self, eps=self.eps)

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimizer.

        Args:
            groups: torch's parameter groups.
        """
        return torch.optim.SparseAdam(groups, betas=self.betas, eps=self.eps)


def _check_eps(owner: object, *, eps: float) -> None:
    require(
        ok=eps > 0.0,
        owner=owner,
        rule="eps must be positive",
        got={"eps": eps},
        remedy="1e-8 is usual",
    )


@final
@dataclass(frozen=True, kw_only=True)
class BankRows:
    """An optimizer for all parameters, with a rule of its own for the rows of some banks.

    The banks must have sparse gradients (`sparse_bank_gradients`). A step then costs what was read:
    nothing of a chapter that no segment of the batch read is looked at or moved. With `RowSGD` and
    `RowAdagrad` that is exact. `RowAdam` is another optimizer than Adam, and is said so by name.
    For Adam there is no such exact form: it moves every row in every step.

    Args:
        rows: how the rows learn.
        rest: how all other parameters learn.
        banks: the banks.

    Raises:
        ValueError: if there is no bank, one has no rows of its own, its group decays weights, which
            would move every row, or none of the groups holds it.

    Source: memtx's own composition of torch's optimizers.

    Example:
        >>> BankRows.__name__  # needs banks
        'BankRows'
    """

    rows: RowRule
    rest: AdamW
    banks: Sequence[nn.Module]

    def __post_init__(self) -> None:
        require(
            ok=bool(self.banks),
            owner=self,
            rule="banks must be at least one",
            got={"banks": len(self.banks)},
            remedy="use the other optimizer alone where there is no bank",
        )
        for bank in self.banks:
            row_parameter(bank)

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of some groups.

        Args:
            groups: one torch parameter group is made of each, in order.

        Raises:
            ValueError: if a bank is in none of them, or its group decays weights.
        """
        wanted = {id(row_parameter(bank)) for bank in self.banks}
        held = {id(p): group for group in groups for p in group.parameters()}
        decays = {held[key].name: held[key].weight_decay for key in wanted if key in held}
        require(
            ok=wanted <= set(held) and not any(decays.values()),
            owner="BankRows",
            rule="each bank must be in a group without weight decay, which would move every row",
            got={"banks in no group": len(wanted - set(held)), "weight decay": decays},
            remedy="give the banks a group of their own with weight_decay=0.0",
        )
        return _ByRows(groups=groups, rows=self.rows, rest=self.rest, by_row=wanted)


@final
class _ByRows(torch.optim.Optimizer):
    """Two of torch's optimizers behind one face; what they remember lies in one state."""

    def __init__(
        self, *, groups: list[ParameterGroup], rows: RowRule, rest: Optimizer, by_row: set[int]
    ) -> None:
        self.groups = groups
        self.rows = rows
        self.rest = rest
        self.by_row = by_row
        # First, so that the groups have the settings of the usual optimizer, and its names.
        whole = rest.make(groups)
        super().__init__([dict(group) for group in whole.param_groups], {})
        self._parts = [
            (made, places)
            for make, places, pick in (
                (self._rest, self._places(by_row=False), False),
                (rows.make, self._places(by_row=True), True),
            )
            if places
            for made in [make(self._picked(places, by_row=pick))]
        ]
        for made, _ in self._parts:
            self.state.update(made.state)

    def _places(self, *, by_row: bool) -> list[int]:
        """Give the numbers of the groups that have parameters of a kind."""
        found = [self._of(group, by_row=by_row) for group in self.param_groups]
        return [number for number, parameters in enumerate(found) if parameters]

    def _of(self, group: dict[str, Any], *, by_row: bool) -> list[nn.Parameter]:
        return [p for p in group["params"] if (id(p) in self.by_row) == by_row]

    def _picked(self, places: list[int], *, by_row: bool) -> list[dict[str, Any]]:
        groups = [self.param_groups[place] for place in places]
        return [{"params": self._of(each, by_row=by_row), "lr": each["lr"]} for each in groups]

    def _rest(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        settings = {key: value for key, value in self.param_groups[0].items() if key in _KEPT}
        return torch.optim.AdamW(groups, **settings)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take a step with the gradients as they are.

        Args:
            closure: gives the loss, with gradients; absent, they are there.

        Raises:
            ValueError: if the gradient of a bank is not sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for g in self.param_groups for p in g["params"] if id(p) in self.by_row]
        dense = sum(each is not None and not each.is_sparse for each in gradients)
        require(
            ok=dense == 0,
            owner="BankRows",
            rule="the gradients of its banks must be sparse",
            got={"dense gradients": dense},
            remedy="call sparse_bank_gradients(model) before the first step",
        )
        for made, places in self._parts:
            made.state = self.state
            for own, place in zip(made.param_groups, places, strict=True):
                own["lr"] = self.param_groups[place]["lr"]
                if "weight_decay" in own:
                    own["weight_decay"] = self.param_groups[place]["weight_decay"]
            # torch's own sparse tensors are sound, and torch warns where nobody says so.
            with torch.sparse.check_sparse_tensor_invariants(False):
                made.step()
        return loss
