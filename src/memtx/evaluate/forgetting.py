"""What learning cost the rest: loss and divergence from the model before, on background text."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from memtx.adapters import halves_of
from memtx.evaluate.before import before_learning
from memtx.evaluate.perplexity import window_rows
from memtx.evaluate.results import Confidence, Metric
from memtx.evaluate.scoring import LOGITS_HELD, TokenBatch, batches_of, check_rows
from memtx.evaluate.windows import Windows
from memtx.generate import padding_token
from memtx.modes import evaluating


@final
@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """A model and the model it was before, on the same tokens, window by window.

    Args:
        tokens: of each window, how many it predicts.
        base_nats: of each window, the summed cross-entropy of the model before.
        nats: that of the model now.
        divergence: of each window, the summed KL(before || now).
        agreements: of each window, at how many places both hold the same token likeliest.

    Source: loss and divergence as in MEND (Mitchell et al. 2022, arXiv 2110.11309), which calls the
    first drawdown.

    Example:
        >>> found = Forgetting(
        ...     tokens=[10], base_nats=[20.0], nats=[21.0], divergence=[0.5], agreements=[9])
        >>> round(found.loss_rise, 3), round(found.kl, 3), found.agreement
        (0.1, 0.05, 0.9)
    """

    tokens: list[int]
    base_nats: list[float]
    nats: list[float]
    divergence: list[float]
    agreements: list[int]

    @property
    def base_loss(self) -> float:
        """Cross-entropy per token of the model before, in nats."""
        return sum(self.base_nats) / sum(self.tokens)

    @property
    def loss(self) -> float:
        """Cross-entropy per token of the model now, in nats."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def loss_rise(self) -> float:
        """By how much the loss rose, in nats per token."""
        return self.loss - self.base_loss

    @property
    def perplexity_rise(self) -> float:
        """By what share the perplexity rose: 0.03 is 3 percent."""
        return math.expm1(self.loss_rise)

    @property
    def kl(self) -> float:
        """KL(before || now) per token, in nats."""
        return sum(self.divergence) / sum(self.tokens)

    @property
    def agreement(self) -> float:
        """Share of places where both hold the same token likeliest."""
        return sum(self.agreements) / sum(self.tokens)

    def metrics(self, confidence: Confidence) -> dict[str, Metric]:
        """Give all of them, with intervals over windows.

        Args:
            confidence: how intervals are made.
        """
        tokens = [float(count) for count in self.tokens]
        rises = [now - before for now, before in zip(self.nats, self.base_nats, strict=True)]
        return {
            "base_loss": confidence.ratio(self.base_nats, tokens, of=float),
            "loss": confidence.ratio(self.nats, tokens, of=float),
            "loss_rise": confidence.ratio(rises, tokens, of=float),
            "perplexity_rise": confidence.ratio(rises, tokens, of=math.expm1),
            "kl": confidence.ratio(self.divergence, tokens, of=float),
            "agreement": confidence.ratio([float(n) for n in self.agreements], tokens, of=float),
        }


@torch.no_grad()
def forgetting(
    *,
    model: Any,
    tokenizer: Any,
    documents: list[str],
    windows: Windows,
    batch_size: int,
    base: Any | None,
) -> Forgetting:
    """Compare a model with what it was before it learned, on text it should still know.

    Args:
        model: the model that learned.
        tokenizer: of both models.
        documents: the texts; each is read by itself.
        windows: how long ones are cut.
        batch_size: windows per forward; it changes no number.
        base: the model before, as for full fine-tuning; None switches off the memory or the LoRA
            of `model`.

    Raises:
        ValueError: if there is nothing to predict, or `base` is part of `model`, or is None and
            nothing of `model` can be switched off.
    """
    rows = window_rows(tokenizer=tokenizer, documents=documents, windows=windows)
    check_rows(owner="forgetting", rows=rows, batch_size=batch_size)
    found: dict[int, list[float]] = {}
    for batch in batches_of(rows=rows, batch_size=batch_size, fill=padding_token(tokenizer)):
        sizes = [len(rows[row][1]) for row in batch.rows]
        each_token = _compared(batch, model=model, base=base)
        sums = [piece.sum(dim=0).tolist() for piece in each_token.split(sizes)]
        found |= dict(zip(batch.rows, sums, strict=True))
    columns = [list(column) for column in zip(*(found[n] for n in range(len(rows))), strict=True)]
    return Forgetting(
        tokens=[len(predicted) for _, predicted in rows],
        base_nats=columns[0],
        nats=columns[1],
        divergence=columns[2],
        agreements=[round(count) for count in columns[3]],
    )


def _compared(batch: TokenBatch, *, model: Any, base: Any | None) -> Tensor:
    """Give both losses, the divergence and the agreement at each predicted token `[tokens, 4]`."""
    with before_learning(owner="forgetting", model=model, base=base) as before:
        teacher = batch.hidden(before)
    with evaluating(model):
        hidden = batch.hidden(model)
    wanted = batch.wanted.to(hidden.device)
    pieces = []
    for start in range(0, len(wanted), LOGITS_HELD):
        part = slice(start, start + LOGITS_HELD)
        # The head itself may carry a LoRA, so it is asked while that is off, and again while on.
        with before_learning(owner="forgetting", model=model, base=base) as before:
            was = halves_of(before).head(teacher[part]).float().log_softmax(dim=-1)
        with evaluating(model):
            now = halves_of(model).head(hidden[part]).float().log_softmax(dim=-1)
        was, target = was.to(now.device), wanted[part, None]
        pieces.append(
            torch.stack(
                [
                    -was.gather(1, target)[:, 0],
                    -now.gather(1, target)[:, 0],
                    (was.exp() * (was - now)).sum(dim=-1),
                    (was.argmax(dim=-1) == now.argmax(dim=-1)).float(),
                ],
                dim=1,
            ).double()
        )
    return torch.cat(pieces)
