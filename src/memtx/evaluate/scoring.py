"""What a model makes of given continuations: the one loop under all measurements of text."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from memtx.adapters import Choice, MemoryLibrary, halves_of
from memtx.checks import require, require_positive
from memtx.context import IGNORED
from memtx.modes import evaluating

# How many tokens' logits to hold at a time.
LOGITS_HELD = 4096

TokenRow = tuple[list[int], list[int]]
"""Tokens that are only read, and those behind them that are predicted."""


@final
@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model makes of one continuation.

    Args:
        log_probs: of each of its tokens, in nats.
        likeliest: the token that the model holds likeliest at each of their places.
        tokens: the tokens themselves.

    Source: `loglikelihood` of lm-evaluation-harness, kept token by token.

    Example:
        >>> scored = Scored(log_probs=[-0.5, -1.5], likeliest=[7, 4], tokens=[7, 5])
        >>> scored.total, scored.is_greedy, scored.token_accuracy
        (-2.0, False, 0.5)
    """

    log_probs: list[float]
    likeliest: list[int]
    tokens: list[int]

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.log_probs)

    @property
    def mean(self) -> float:
        """Log-probability per token."""
        return self.total / len(self.log_probs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would say exactly this."""
        return self.likeliest == self.tokens

    @property
    def token_accuracy(self) -> float:
        """Share of the tokens that are the likeliest, each behind the right ones."""
        hits = sum(a == b for a, b in zip(self.likeliest, self.tokens, strict=True))
        return hits / len(self.tokens)


@final
@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Some rows as tensors, longest first, padded on the right; no row's last token is read.

    Args:
        rows: which rows they are.
        input_ids: `[batch, length]`.
        mask: 1 at real tokens.
        labels: those of the tokens that are predicted, -100 elsewhere.
        targets: the token that is predicted at each place, -100 where none is.

    Source: memtx's own.

    Example:
        >>> batch = next(batches_of(rows=[([1], [2]), ([1, 2], [3])], batch_size=2, fill=0))
        >>> batch.input_ids.tolist(), batch.targets.tolist()
        ([[1, 2], [1, 0]], [[-100, 3], [2, -100]])
    """

    rows: list[int]
    input_ids: Tensor
    mask: Tensor
    labels: Tensor
    targets: Tensor

    @property
    def wanted(self) -> Tensor:
        """The tokens that are predicted, row after row."""
        return self.targets[self.targets != IGNORED]

    def hidden(self, model: Any) -> Tensor:
        """Give the hidden states from which the tokens are predicted, `[tokens, dim]`.

        Args:
            model: the model.
        """
        device = model.device
        hidden = halves_of(model).hidden_states(
            input_ids=self.input_ids.to(device),
            attention_mask=self.mask.to(device),
            position_ids=None,
            # They tell routers where the prompt ends.
            labels=self.labels.to(device),
        )
        predicting: Tensor = hidden[(self.targets != IGNORED).to(hidden.device)]
        return predicting


def batches_of(*, rows: Sequence[TokenRow], batch_size: int, fill: int) -> Iterator[TokenBatch]:
    """Cut rows into batches of like lengths.

    Args:
        rows: the rows.
        batch_size: rows per batch.
        fill: token that fills masked places.
    """
    # Padding on the right is seen by no real token, whatever kind of positions a model has.
    order = sorted(range(len(rows)), key=lambda row: -sum(map(len, rows[row])))
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        ids = torch.full((len(picked), sum(map(len, rows[picked[0]])) - 1), fill)
        mask = torch.zeros_like(ids)
        labels, targets = torch.full_like(ids, IGNORED), torch.full_like(ids, IGNORED)
        for place, row in enumerate(picked):
            context, predicted = rows[row]
            first, end = len(context), len(context) + len(predicted) - 1
            ids[place, :end] = torch.tensor([*context, *predicted[:-1]])
            mask[place, :end] = 1
            labels[place, first:end] = torch.tensor(predicted[:-1])
            targets[place, first - 1 : end] = torch.tensor(predicted)
        yield TokenBatch(rows=picked, input_ids=ids, mask=mask, labels=labels, targets=targets)


def check_rows(*, owner: str, rows: Sequence[TokenRow], batch_size: int) -> None:
    """Refuse rows that predict nothing, or from nothing.

    Args:
        owner: who asks.
        rows: the rows.
        batch_size: rows per forward.

    Raises:
        ValueError: if there is no row, one lacks context or continuation, or `batch_size` is
            below 1.
    """
    require_positive(owner=owner, sizes={"batch_size": batch_size})
    bare = [
        number for number, (context, predicted) in enumerate(rows) if not context or not predicted
    ]
    require(
        ok=bool(rows) and not bare,
        owner=owner,
        rule="there must be something to predict, each behind at least one token",
        got={"rows": len(rows), "without context or continuation": bare[:5]},
        remedy="pass more text, or a context such as the begin token",
    )


@torch.no_grad()
def score(
    *,
    model: Any,
    rows: Sequence[TokenRow],
    batch_size: int,
    fill: int,
    memories: Sequence[Choice] | None,
) -> list[Scored]:
    """Score the continuation of each row.

    Args:
        model: a Hugging Face causal language model, an adapter or library of memories, or a whole
            model of memtx.
        rows: tokens that are only read, and those behind them that are predicted.
        batch_size: rows per forward; it changes no number.
        fill: token that fills masked places.
        memories: what each row reads of a `MemoryLibrary`; None leaves that to the model.

    Raises:
        ValueError: if a row has nothing to predict, or from nothing; if `memories` are named for a
            model that is no library, or for another number of rows.
    """
    check_rows(owner="score", rows=rows, batch_size=batch_size)
    require_memories(owner="score", model=model, memories=memories, wanted=len(rows))
    found: dict[int, Scored] = {}
    with evaluating(model):
        for batch in batches_of(rows=rows, batch_size=batch_size, fill=fill):
            with reading(model, memories, rows=batch.rows):
                hidden = batch.hidden(model)
            log_probs, likeliest = _scores(
                halves_of(model).head, hidden, targets=batch.wanted.to(hidden.device)
            )
            start = 0
            for row in batch.rows:
                end = start + len(rows[row][1])
                found[row] = Scored(
                    log_probs=log_probs[start:end],
                    likeliest=likeliest[start:end],
                    tokens=list(rows[row][1]),
                )
                start = end
    return [found[row] for row in range(len(rows))]


def _scores(head: Any, hidden: Tensor, *, targets: Tensor) -> tuple[list[float], list[int]]:
    log_probs: list[float] = []
    likeliest: list[int] = []
    pieces = zip(hidden.split(LOGITS_HELD), targets.split(LOGITS_HELD), strict=True)
    for piece, wanted in pieces:
        logits = head(piece).float().log_softmax(dim=-1)
        log_probs += logits.gather(1, wanted[:, None])[:, 0].tolist()
        likeliest += logits.argmax(dim=-1).tolist()
    return log_probs, likeliest


def require_memories(
    *, owner: str, model: Any, memories: Sequence[Choice] | None, wanted: int
) -> None:
    """Refuse memories by row where they cannot be read so.

    Args:
        owner: who asks.
        model: the model.
        memories: what each row reads; None is always right.
        wanted: how many there must be.

    Raises:
        ValueError: if the model is no `MemoryLibrary`, or there are more or fewer.
    """
    if memories is None:
        return
    require(
        ok=isinstance(model, MemoryLibrary) and len(memories) == wanted,
        owner=owner,
        rule="memories must be those of a MemoryLibrary, one for each item",
        got={"model": type(model).__name__, "memories": len(memories), "items": wanted},
        remedy="pass None for other models",
    )


def reading(model: Any, memories: Sequence[Choice] | None, *, rows: Sequence[int]) -> Any:
    """Let the rows of a batch read their memories inside a `with` block.

    Args:
        model: the library, where memories are named.
        memories: what each row of all reads, or None.
        rows: which rows the batch holds.
    """
    return nullcontext() if memories is None else model.rows([memories[row] for row in rows])
