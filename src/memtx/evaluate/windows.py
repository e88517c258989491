"""How a text that is longer than the context is cut into what is read and what is predicted."""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from memtx.checks import require, require_positive
from memtx.evaluate.scoring import TokenRow


@runtime_checkable
class Windows(Protocol):
    """Cuts the tokens of one document into rows."""

    def __call__(self, ids: list[int]) -> list[TokenRow]:
        """Give for each row the tokens that are only read, and those that are predicted."""


@final
@dataclass(frozen=True, kw_only=True)
class StridedWindows:
    """Windows that begin every `stride` tokens; each predicts what none before it has predicted.

    The first token of a document is only read. With `stride` equal to `max_length` windows do not
    overlap, and the first token of each is only read.

    Args:
        max_length: tokens of a window.
        stride: tokens from one beginning to the next; the smaller, the more is read before each
            token, and the longer it takes.

    Raises:
        ValueError: if `max_length` is below 2, or `stride` is not from 1 to `max_length`.

    Source: transformers' guide "Perplexity of fixed-length models". There a window's mean loss is
    weighted by one token less than it predicts; here every predicted token counts alike.

    Example:
        >>> StridedWindows(max_length=4, stride=2)([1, 2, 3, 4, 5, 6, 7])
        [([1], [2, 3, 4]), ([3, 4], [5, 6]), ([5, 6], [7])]
    """

    max_length: int
    stride: int

    def __post_init__(self) -> None:
        sizes = {"max_length - 1": self.max_length - 1, "stride": self.stride}
        require_positive(owner=self, sizes=sizes)
        require(
            ok=self.stride <= self.max_length,
            owner=self,
            rule="stride must be at most max_length, or tokens would be left out",
            got={"stride": self.stride, "max_length": self.max_length},
            remedy="make it smaller",
        )

    def __call__(self, ids: list[int]) -> list[TokenRow]:
        """Cut a document.

        Args:
            ids: its tokens.
        """
        rows: list[TokenRow] = []
        done = 0
        for begin in range(0, len(ids), self.stride):
            end = min(begin + self.max_length, len(ids))
            first = max(done, begin + 1)
            if first < end:
                rows.append((ids[begin:first], ids[first:end]))
            done = end
            if end == len(ids):
                break
        return rows


@final
@dataclass(frozen=True, kw_only=True)
class RollingWindows:
    """Windows side by side that predict every token, the first from a token put before the text.

    A window begins with the last token of the one before; the last window reads as much as fits.

    Args:
        max_length: tokens that a window reads at most.
        prefix_token_id: what stands before the document, such as the tokenizer's begin token.

    Raises:
        ValueError: if `max_length` is below 1.

    Source: `loglikelihood_rolling` of lm-evaluation-harness.

    Example:
        >>> RollingWindows(max_length=4, prefix_token_id=0)([1, 2, 3, 4, 5, 6])
        [([0], [1, 2, 3, 4]), ([2, 3, 4], [5, 6])]
    """

    max_length: int
    prefix_token_id: int

    def __post_init__(self) -> None:
        require_positive(owner=self, sizes={"max_length": self.max_length})

    def __call__(self, ids: list[int]) -> list[TokenRow]:
        """Cut a document.

        Args:
            ids: its tokens.
        """
        whole = [self.prefix_token_id, *ids]
        rows: list[TokenRow] = []
        for first in range(1, len(whole), self.max_length):
            end = min(first + self.max_length, len(whole))
            # The last token that is predicted is not read.
            begin = max(0, end - 1 - self.max_length)
            rows.append((whole[begin:first], whole[first:end]))
        return rows
