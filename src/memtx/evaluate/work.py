"""Matrix products, counted forwards and backwards by who needs a gradient."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

from memtx.checks import require
from memtx.memory import FactorizedMemoryBank
from memtx.transformer import Linear, LowRankLinear, TiedHead


@final
@dataclass(frozen=True, kw_only=True)
class Call:
    """What a part is called with: so many rows of so many tokens.

    Args:
        batch: number of rows.
        length: tokens of a row.
        live: whether a gradient is wanted for the stream that comes in.

    Source: memtx's own.

    Example:
        >>> Call(batch=2, length=8, live=True).tokens
        16
    """

    batch: int
    length: int
    live: bool

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.batch * self.length

    def after(self, parts: Iterable[Any]) -> "Call":
        """Give the call of what reads the output of some parts.

        Args:
            parts: modules that the stream went through.
        """
        return replace(self, live=self.live or any(map(is_trained, parts)))


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of a forward, and of the backward through it.

    Args:
        forward: two for each multiplication of a matrix product.
        backward: as many again for each of its two sides that needs a gradient.

    Source: reverse-mode differentiation of a matrix product.

    Example:
        >>> Work(forward=8, backward=16) + Work(forward=2, backward=0)
        Work(forward=10, backward=16)
    """

    forward: int
    backward: int

    def __add__(self, other: "Work") -> "Work":
        return Work(forward=self.forward + other.forward, backward=self.backward + other.backward)


@final
@dataclass(frozen=True, kw_only=True)
class Tally:
    """Work by the name of the part that asks for it.

    Args:
        forward: operations of the forward.
        backward: operations of the backward.

    Source: memtx's own.

    Example:
        >>> tally = Tally(forward=Counter(), backward=Counter())
        >>> tally.add("Linear", Work(forward=8, backward=16))
        >>> tally.forward["Linear"]
        8
    """

    forward: Counter[str]
    backward: Counter[str]

    def add(self, name: str, work: Work) -> None:
        """Add work under a name.

        Args:
            name: of the part.
            work: what it asks for.
        """
        self.forward[name] += work.forward
        self.backward[name] += work.backward


NOTHING = Work(forward=0, backward=0)


def is_trained(part: Any) -> bool:
    """Tell whether a part, or a bank that it reads, has a parameter that is trained.

    Args:
        part: a module.
    """
    inside = list(part.modules())
    read = [each.bank for each in inside if isinstance(getattr(each, "bank", None), nn.Module)]
    return any(p.requires_grad for each in [part, *read] for p in each.parameters())


def product(operations: int, *, gradients: int) -> Work:
    """Count a matrix product of which so many of its two sides need a gradient.

    Args:
        operations: of the product.
        gradients: 0, 1 or 2.
    """
    return Work(forward=operations, backward=operations * gradients)


def projected(projection: Any, *, rows: int, live: bool) -> Work:
    """Count a memtx projection of so many rows.

    Args:
        projection: a `Linear`, a `LowRankLinear` or a `TiedHead`.
        rows: how many vectors it maps.
        live: whether a gradient is wanted for them.

    Raises:
        ValueError: if it is of another class.
    """
    if isinstance(projection, LowRankLinear):
        down, up = projection.down, projection.up
        into = 2 * rows * projection.rank * projection.in_features
        out = 2 * rows * projection.rank * projection.out_features
        inner = live or down.requires_grad
        return product(into, gradients=down.requires_grad + live) + product(
            out, gradients=up.requires_grad + inner
        )
    require(
        ok=isinstance(projection, Linear | TiedHead),
        owner="forward_flops",
        rule="a projection must be a Linear, a LowRankLinear or a TiedHead",
        got={"projection": type(projection).__name__},
        remedy="count it by torch.utils.flop_counter.FlopCounterMode",
    )
    return product(
        int(2 * rows * projection.in_features * projection.out_features),
        gradients=projection.weight.requires_grad + live,
    )


def looked_up(bank: Any, *, rows: int) -> Work:
    """Count the making of so many memory tokens.

    Args:
        bank: the bank.
        rows: how many.
    """
    if not isinstance(bank, FactorizedMemoryBank):
        return NOTHING
    trained = sum(p.requires_grad for p in bank.parameters())
    return product(2 * rows * bank.rank * bank.dim, gradients=trained)


def attended(*, queries: int, keys: int, width: int, live: tuple[bool, bool, bool]) -> Work:
    """Count an attention of each query over so many keys: scores, and the sum of values.

    Args:
        queries: how many.
        keys: how many each sees.
        width: of all heads together.
        live: whether a gradient is wanted for queries, keys and values.
    """
    query, key, value = live
    half = 2 * queries * keys * width
    return product(half, gradients=query + key) + product(half, gradients=(query or key) + value)
