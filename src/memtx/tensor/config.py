"""The values of a tensor memory."""

import math
from dataclasses import dataclass
from typing import final

from memtx.checks import require, require_positive
from memtx.expression import component

# Below it float32, which states live in, has no whole precision, and a GPU may take it for 0.
SMALLEST = 2.0**-126


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class TensorMemoryConfig:
    """The values of a tensor memory: the one value object of memtx, as its source has it.

    The three bounds hold where a call gives its state back: carrying a state on, decoding,
    `update`. They do not bind what one call reads of itself, nor training without a state.

    Args:
        dim: width of a key and of a value.
        eps: added to the denominator of a retrieval.
        use_delta_rule: whether a value is written less what its key already reads.
        max_delta: bound of the numbers of what a token writes.
        max_memory: bound of the numbers of the state `S`.
        max_norm: bound of the numbers of the state `z`.

    Raises:
        ValueError: if `dim` is below 1, `use_delta_rule` is not a bool, another value is not
            positive, or `eps` is infinite or nothing in float32.

    Source: `MemoryConfig` of the tensor-product source.

    Example:
        >>> from memtx import TensorMemoryConfig
        >>> TensorMemoryConfig(dim=64, eps=1e-6, use_delta_rule=True, max_delta=10.0,
        ...                    max_memory=100.0, max_norm=1000.0).dim
        64
    """

    dim: int
    eps: float
    use_delta_rule: bool
    max_delta: float
    max_memory: float
    max_norm: float

    def __post_init__(self) -> None:
        require_positive(owner=self, sizes={"dim": self.dim})
        require(
            ok=isinstance(self.use_delta_rule, bool),
            owner=self,
            rule="use_delta_rule must be True or False",
            got={"use_delta_rule": self.use_delta_rule},
            remedy="say which of the two rules it follows",
        )
        for name in ("eps", "max_delta", "max_memory", "max_norm"):
            value = getattr(self, name)
            require(
                ok=_is_number(value) and value >= SMALLEST,
                owner=self,
                rule=f"{name} must be positive",
                got={name: value},
                remedy="1e-6 is usual for eps, and 10.0, 100.0 and 1000.0 for the bounds of delta, "
                "memory and norm",
            )
        require(
            ok=self.eps < math.inf,
            owner=self,
            rule="eps must be finite",
            got={"eps": self.eps},
            remedy="1e-6 is usual",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
