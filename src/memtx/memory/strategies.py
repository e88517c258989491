"""Strategies: which tokens choose chapters together, and from what they choose."""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from memtx.checks import require
from memtx.context import Context
from memtx.expression import component

NOTHING = -1


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Marks:
    """How a strategy cuts the tokens: all of `[batch, known]`, rising along a row.

    Args:
        segment: equal where tokens choose together.
        piece: equal where tokens are also read together: a part of a segment.
        group: equal where tokens are pooled together; `NOTHING` where one is not pooled.
        source: the group whose mean a token's segment chooses from; `NOTHING` for a zero vector.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> each = torch.arange(3)[None]
        >>> Marks(segment=each, piece=each, group=each, source=each).group.tolist()
        [[0, 1, 2]]
    """

    segment: Int[Tensor, "batch known"]
    piece: Int[Tensor, "batch known"]
    group: Int[Tensor, "batch known"]
    source: Int[Tensor, "batch known"]


@runtime_checkable
class RoutingStrategy(Protocol):
    """Cuts the positions into segments and says what each segment's vector is pooled from."""

    @property
    def is_causal(self) -> bool:
        """Whether no output depends on a later token (after the prompt, where there is one)."""

    @property
    def remembers(self) -> bool:
        """Whether a token's chapters depend on tokens before it, kept beside a cache."""

    @property
    def pools(self) -> bool:
        """Whether segments choose from means; if not, each token chooses from itself."""

    def marks(self, context: Context, prompt: Tensor) -> Marks:
        """Mark every known token; `prompt` tells those of the prompt, `[batch, known]`."""

    def width(self, length: int) -> int:
        """Give the most tokens of a piece in a stream of so many tokens."""

    def count(self, length: int, past: int) -> int:
        """Give the most pieces of one document in a stream of so many tokens."""


@runtime_checkable
class Windows(Protocol):
    """A strategy whose segments choose from the tokens before them, and so before they begin."""

    @property
    def window(self) -> int:
        """How many of the last tokens the next segment chooses from."""

    def completed(self, context: Context, prompt: Tensor) -> list[int]:
        """Give the rows in which the next token begins a segment that chooses from these."""


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class SequenceRouting:
    """A sequence chooses once, from the mean of all its real tokens.

    Not causal: a later token changes the chapters that earlier tokens read, so that in training
    the model sees its future. Meant for encoding and for comparison with the source.

    Args:
        None: it takes no arguments.

    Raises:
        ValueError: in cached generation, which cannot equal one full forward.

    Source: the mixture-of-chapters source's sequence routing.

    Example:
        >>> SequenceRouting().is_causal
        False
    """

    @property
    def is_causal(self) -> bool:
        """False: later tokens count in the mean."""
        return False

    @property
    def remembers(self) -> bool:
        """False: nothing that could be kept would make it exact."""
        return False

    @property
    def pools(self) -> bool:
        """True."""
        return True

    def marks(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> Marks:
        """Mark documents.

        Args:
            context: the tokens.
            prompt: not used.
        """
        require(
            ok=context.past == 0,
            owner=self,
            rule="cached generation must not be asked of it: each new token would change the "
            "chapters that the tokens in the cache have read, so the result would not be that of "
            "one full forward",
            got={"tokens in the cache": context.past, "is_causal": self.is_causal},
            remedy="pass use_cache=False, or use PromptRouting, RollingRouting or TokenRouting",
        )
        return Marks(
            segment=context.document,
            piece=context.document,
            group=context.document,
            source=context.document,
        )

    def width(self, length: int) -> int:
        """Give the whole length.

        Args:
            length: number of tokens of the stream.
        """
        return length

    def count(self, length: int, past: int) -> int:
        """Give 1.

        Args:
            length: number of tokens of the stream.
            past: number of tokens before them.
        """
        return 1


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class PromptRouting:
    """A sequence chooses once, from the mean of its prompt.

    The prompt is the tokens before the first label of a document, or, without labels, those of the
    first call. Where there is none (every token has a label), a zero vector chooses. Causal for the
    tokens after the prompt.

    Args:
        None: it takes no arguments.

    Source: memtx's own; what an instruction needs is known when its answer starts.

    Example:
        >>> PromptRouting().is_causal
        True
    """

    @property
    def is_causal(self) -> bool:
        """True, for the tokens after the prompt."""
        return True

    @property
    def remembers(self) -> bool:
        """True: the prompt."""
        return True

    @property
    def pools(self) -> bool:
        """True."""
        return True

    def marks(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> Marks:
        """Mark documents, and pool their prompts.

        Args:
            context: the tokens.
            prompt: those of the prompt.
        """
        document = context.document
        return Marks(
            segment=document,
            piece=document,
            group=torch.where(prompt, document, NOTHING),
            source=document,
        )

    def width(self, length: int) -> int:
        """Give the whole length.

        Args:
            length: number of tokens of the stream.
        """
        return length

    def count(self, length: int, past: int) -> int:
        """Give 1.

        Args:
            length: number of tokens of the stream.
            past: number of tokens before them.
        """
        return 1


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class TokenRouting:
    """Every token chooses for itself, from itself.

    Args:
        None: it takes no arguments.

    Source: the router of mixtures of experts (Shazeer et al. 2017, arXiv 1701.06538).

    Example:
        >>> TokenRouting().count(300, 0)
        300
    """

    @property
    def is_causal(self) -> bool:
        """True."""
        return True

    @property
    def remembers(self) -> bool:
        """False: a token needs no other."""
        return False

    @property
    def pools(self) -> bool:
        """False: each token chooses from itself."""
        return False

    def marks(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> Marks:
        """Mark each token by itself.

        Args:
            context: the tokens.
            prompt: not used.
        """
        each = torch.arange(context.known, device=context.real.device).expand_as(context.real)
        return Marks(segment=each, piece=each, group=each, source=each)

    def width(self, length: int) -> int:
        """Give 1.

        Args:
            length: number of tokens of the stream.
        """
        return 1

    def count(self, length: int, past: int) -> int:
        """Give the number of tokens.

        Args:
            length: number of tokens of the stream.
            past: number of tokens before them.
        """
        return length
