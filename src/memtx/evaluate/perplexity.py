"""Loss of a model on documents, each read by itself from its beginning."""

import math
import re
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from memtx.adapters import halves_of
from memtx.checks import require, require_positive
from memtx.context import IGNORED
from memtx.evaluate.results import Confidence, Metric
from memtx.evaluate.scoring import LOGITS_HELD, TokenRow, score
from memtx.evaluate.windows import Windows
from memtx.generate import padding_token
from memtx.modes import evaluating
from memtx.ops.linear_losses import chunked_cross_entropy


@final
@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """Loss on a text.

    Args:
        total: sum of the cross-entropy of all predicted tokens, in nats.
        num_tokens: how many tokens were predicted.

    Source: language-model perplexity per token.

    Example:
        >>> TextLoss(total=0.0, num_tokens=3).perplexity
        1.0
    """

    total: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Cross-entropy per token, in nats."""
        return self.total / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.mean)


@final
@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Loss on documents, window by window.

    Args:
        nats: of each window, the summed cross-entropy of the tokens it predicts.
        tokens: of each window, how many it predicts.
        num_words: of all documents, counted at white space.
        num_bytes: of all documents in UTF-8.

    Source: perplexity per token; per word, per byte and bits per byte as lm-evaluation-harness has
    them.

    Example:
        >>> found = Perplexity(nats=[2.0, 4.0], tokens=[4, 4], num_words=3, num_bytes=12)
        >>> round(found.perplexity, 3), round(found.word_perplexity, 3)
        (2.117, 7.389)
    """

    nats: list[float]
    tokens: list[int]
    num_words: int
    num_bytes: int

    @property
    def mean(self) -> float:
        """Cross-entropy per token, in nats."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.mean)

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word, which models of other tokenizers can be compared by."""
        return math.exp(sum(self.nats) / self.num_words)

    @property
    def byte_perplexity(self) -> float:
        """Perplexity per byte."""
        return math.exp(sum(self.nats) / self.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte."""
        return sum(self.nats) / self.num_bytes / math.log(2)

    def metrics(self, confidence: Confidence) -> dict[str, Metric]:
        """Give loss and perplexity per token, with intervals over windows.

        Args:
            confidence: how intervals are made.
        """
        tokens = [float(count) for count in self.tokens]
        return {
            "loss": confidence.ratio(self.nats, tokens, of=float),
            "perplexity": confidence.ratio(self.nats, tokens, of=math.exp),
            "word_perplexity": self._over_all(self.word_perplexity),
            "bits_per_byte": self._over_all(self.bits_per_byte),
        }

    def _over_all(self, value: float) -> Metric:
        return Metric(value=value, num_items=len(self.nats), interval=None)


def perplexity(
    *, model: Any, tokenizer: Any, documents: list[str], windows: Windows, batch_size: int
) -> Perplexity:
    """Measure the perplexity of documents of any length.

    Args:
        model: a Hugging Face causal language model, an adapter or library of memories, or a whole
            model of memtx.
        tokenizer: its tokenizer, with the special tokens it sets.
        documents: the texts; each is read by itself.
        windows: how long ones are cut: `StridedWindows` or `RollingWindows`.
        batch_size: windows per forward; it changes no number.

    Raises:
        ValueError: if no document has anything to predict, or `batch_size` is below 1.
    """
    rows: list[TokenRow] = window_rows(tokenizer=tokenizer, documents=documents, windows=windows)
    scored = score(
        model=model, rows=rows, batch_size=batch_size, fill=padding_token(tokenizer), memories=None
    )
    return Perplexity(
        nats=[-each.total for each in scored],
        tokens=[len(each.tokens) for each in scored],
        num_words=sum(len(re.split(r"\s+", text)) for text in documents),
        num_bytes=sum(len(text.encode("utf-8")) for text in documents),
    )


def window_rows(*, tokenizer: Any, documents: list[str], windows: Windows) -> list[TokenRow]:
    """Cut documents into windows.

    Args:
        tokenizer: gives their tokens.
        documents: the texts.
        windows: cuts each.
    """
    return [
        row for text in documents for row in windows(tokenizer(text, verbose=False)["input_ids"])
    ]


@torch.no_grad()
def text_loss(
    *, model: Any, tokenizer: Any, documents: list[str], max_length: int, batch_size: int
) -> TextLoss:
    """Sum the loss over documents; each is cut into pieces of at most `max_length` tokens.

    Args:
        model: a Hugging Face causal language model or a `MemoryAdapter`.
        tokenizer: its tokenizer; the begin token it sets is context, not a prediction.
        documents: the texts.
        max_length: tokens per piece; a piece's first token is only read.
        batch_size: pieces per forward.

    Raises:
        ValueError: if no document has two tokens, or a size is out of range.
    """
    require_positive(
        owner="text_loss", sizes={"max_length - 1": max_length - 1, "batch_size": batch_size}
    )
    pieces = [
        ids[start : start + max_length]
        for ids in (tokenizer(text, verbose=False)["input_ids"] for text in documents)
        for start in range(0, len(ids), max_length)
    ]
    pieces = sorted((piece for piece in pieces if len(piece) > 1), key=len)
    require(
        ok=bool(pieces),
        owner="text_loss",
        rule="a document must have at least two tokens",
        got={"documents": len(documents)},
        remedy="pass text to predict",
    )
    halves = halves_of(model)
    total, count = 0.0, 0
    with evaluating(model):
        for start in range(0, len(pieces), batch_size):
            ids, mask = _padded(pieces[start : start + batch_size], fill=padding_token(tokenizer))
            ids, mask = ids.to(model.device), mask.to(model.device)
            hidden = halves.hidden_states(
                input_ids=ids,
                attention_mask=mask,
                position_ids=None,
                # Every token is predicted: no router may take the text for its prompt.
                labels=ids.masked_fill(mask == 0, IGNORED),
            )
            real = mask[:, 1:].bool()
            loss = chunked_cross_entropy(
                hidden[:, :-1][real], ids[:, 1:][real], halves.head, LOGITS_HELD
            )
            total += loss.item()
            count += int(real.sum())
    return TextLoss(total=total, num_tokens=count)


def _padded(pieces: list[list[int]], *, fill: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(pieces), max(map(len, pieces))), fill)
    mask = torch.zeros_like(ids)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = torch.tensor(piece)
        mask[row, : len(piece)] = 1
    return ids, mask
