"""Mixings: how what a segment reads in several chapters becomes one."""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from memtx.expression import component
from memtx.ops.routed_read import independent_read, joint_read
from memtx.ops.segments import Segments


@runtime_checkable
class Mixing(Protocol):
    """Reads the chosen chapters of each segment."""

    def __call__(
        self,
        *,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        choice: Tensor | None,
        log_weight: Tensor,
        segments: Segments,
        dropout: float,
    ) -> Tensor:
        """Give what each token read, of the shape of `query`."""


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class JointSoftmax:
    """One softmax over the tokens of all chosen chapters, `log w_i` added to chapter `i`'s scores.

    With all chapters chosen at equal weights this is dense reading.

    Args:
        None: it takes no arguments.

    Source: attention over retrieved blocks, weighted as a prior; memtx's own in this form.

    Example:
        >>> JointSoftmax()
        JointSoftmax()
    """

    def __call__(
        self,
        *,
        query: Float[Tensor, "batch length heads width"],
        key: Float[Tensor, "chapters tokens kv_heads width"],
        value: Float[Tensor, "chapters tokens kv_heads width"],
        choice: Int[Tensor, "batch segments chosen"] | None,
        log_weight: Float[Tensor, "batch segments chosen"],
        segments: Segments,
        dropout: float,
    ) -> Float[Tensor, "batch length heads width"]:
        """Read by `ops.routed_read.joint_read`.

        Args:
            query: the queries of each token.
            key: the keys of the chapters that are read.
            value: their values.
            choice: which of these chapters each segment reads; None, they stand in order.
            log_weight: logarithms of their weights.
            segments: which segment each token belongs to.
            dropout: probability of dropping an attention weight.
        """
        return joint_read(query, key, value, choice, log_weight, segments, dropout)


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class IndependentSoftmax:
    """Each chosen chapter read by a softmax of its own, the reads added up by weight.

    Args:
        None: it takes no arguments.

    Source: a mixture of experts whose experts are chapters, as in the mixture-of-chapters source.

    Example:
        >>> IndependentSoftmax()
        IndependentSoftmax()
    """

    def __call__(
        self,
        *,
        query: Float[Tensor, "batch length heads width"],
        key: Float[Tensor, "chapters tokens kv_heads width"],
        value: Float[Tensor, "chapters tokens kv_heads width"],
        choice: Int[Tensor, "batch segments chosen"] | None,
        log_weight: Float[Tensor, "batch segments chosen"],
        segments: Segments,
        dropout: float,
    ) -> Float[Tensor, "batch length heads width"]:
        """Read by `ops.routed_read.independent_read`.

        Args:
            query: the queries of each token.
            key: the keys of the chapters that are read.
            value: their values.
            choice: which of these chapters each segment reads; None, they stand in order.
            log_weight: logarithms of their weights.
            segments: which segment each token belongs to.
            dropout: probability of dropping an attention weight.
        """
        return independent_read(query, key, value, choice, log_weight, segments, dropout)
