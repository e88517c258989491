"""Strategies that choose anew every so many tokens."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from memtx.checks import require_positive
from memtx.context import Context
from memtx.expression import component
from memtx.memory.strategies import NOTHING, Marks


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class RollingRouting:
    """Every `window` tokens choose anew, from the mean of the window before; the first from zero.

    Args:
        window: number of tokens of a segment, counted from the first real token of a document.

    Raises:
        ValueError: if `window` is below 1.

    Source: the mixture-of-chapters source's rolling routing, made causal.

    Example:
        >>> RollingRouting(window=128).count(300, 0)
        3
    """

    window: int

    def __post_init__(self) -> None:
        require_positive(owner=self, sizes={"window": self.window})

    @property
    def is_causal(self) -> bool:
        """True: a window chooses before its first token is seen."""
        return True

    @property
    def remembers(self) -> bool:
        """True: the window before, and how far the current one is."""
        return True

    @property
    def pools(self) -> bool:
        """True."""
        return True

    def marks(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> Marks:
        """Mark windows.

        Args:
            context: the tokens.
            prompt: not used.
        """
        number = context.index // self.window
        segment = context.document * context.known + number
        source = torch.where(number > 0, segment - 1, NOTHING)
        return Marks(segment=segment, piece=segment, group=segment, source=source)

    def width(self, length: int) -> int:
        """Give the window, or the length where it is less.

        Args:
            length: number of tokens of the stream.
        """
        return min(self.window, length)

    def completed(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> list[int]:
        """Give the rows whose window is full.

        Args:
            context: the tokens.
            prompt: not used.
        """
        counts = _counts(context)
        return [row for row, count in enumerate(counts) if count and count % self.window == 0]

    def count(self, length: int, past: int) -> int:
        """Give how many windows the tokens can touch.

        Args:
            length: number of tokens of the stream.
            past: number of tokens before them; with none, the first starts a window.
        """
        return _windows(length=length, window=self.window, starts=past == 0)


@final
@component
@dataclass(frozen=True, kw_only=True, repr=False)
class HybridRouting:
    """The prompt chooses from its mean, then every `window` generated tokens from what was before.

    The first window after the prompt chooses from the prompt, each later one from the window
    before it. What the prompt is, `PromptRouting` says; with no prompt the first window chooses
    from a zero vector. Causal for the tokens after the prompt.

    Args:
        window: number of generated tokens of a segment.

    Raises:
        ValueError: if `window` is below 1.

    Source: the mixture-of-chapters source's hybrid routing.

    Example:
        >>> HybridRouting(window=64).is_causal
        True
    """

    window: int

    def __post_init__(self) -> None:
        require_positive(owner=self, sizes={"window": self.window})

    @property
    def is_causal(self) -> bool:
        """True, for the tokens after the prompt."""
        return True

    @property
    def remembers(self) -> bool:
        """True: the prompt, the window before, and how far the current one is."""
        return True

    @property
    def pools(self) -> bool:
        """True."""
        return True

    def marks(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> Marks:
        """Mark the prompt and the windows after it; the prompt is read in pieces of a window.

        Args:
            context: the tokens.
            prompt: those of the prompt.
        """
        document, known = context.document, context.known
        lengths = torch.zeros_like(document).scatter_add(1, document, prompt.long())
        generated = context.index - lengths.gather(1, document)
        number = torch.where(prompt, 0, 1 + generated.clamp(min=0) // self.window)
        segment = document * (known + 2) + number
        piece = torch.where(prompt, context.index // self.window, known + number)
        return Marks(
            segment=segment,
            piece=document * (2 * known + 2) + piece,
            group=segment,
            source=torch.where(number > 0, segment - 1, segment),
        )

    def width(self, length: int) -> int:
        """Give the window, or the length where it is less.

        Args:
            length: number of tokens of the stream.
        """
        return min(self.window, length)

    def completed(self, context: Context, prompt: Bool[Tensor, "batch known"]) -> list[int]:
        """Give the rows whose window of generated tokens is full.

        Args:
            context: the tokens.
            prompt: those of the prompt.
        """
        if "prompts" not in context.memo:
            context.memo["prompts"] = prompt.sum(dim=1).tolist()
        pairs = zip(_counts(context), context.memo["prompts"], strict=True)
        generated = [count - length for count, length in pairs]
        return [row for row, count in enumerate(generated) if count and count % self.window == 0]

    def count(self, length: int, past: int) -> int:
        """Give how many pieces of the prompt and windows the tokens can touch.

        Args:
            length: number of tokens of the stream.
            past: number of tokens before them.
        """
        windows = _windows(length=length, window=self.window, starts=past == 0)
        # The prompt may end, and the windows begin, at any token.
        return min(windows + 1, length)


def _counts(context: Context) -> list[int]:
    """Give how many real tokens each row has by now; asked of a GPU once in a forward."""
    if context.all_real and not context.packed:
        return [context.known] * context.real.shape[0]
    if "counts" not in context.memo:
        context.memo["counts"] = (context.index[:, -1] + 1).tolist()
    counts: list[int] = context.memo["counts"]
    return counts


def _windows(*, length: int, window: int, starts: bool) -> int:
    """Give how many windows a run of tokens can touch, when it starts one or starts anywhere."""
    return -(-length // window) if starts else (length + window - 2) // window + 1
