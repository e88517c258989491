"""Learning from the base that has read the text: what it says then, without the text."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from memtx.adapters import halves_of
from memtx.checks import require
from memtx.context import IGNORED
from memtx.data.protocols import Batch
from memtx.modes import evaluating
from memtx.ops.linear_losses import chunked_kl_divergence
from memtx.train.terms import check_switchable, check_values, untrained


@final
@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """KL from the base that reads a text to the model that does not, on what follows the text.

    A row is a text and a continuation; labels stand at the continuation alone. The teacher, the
    same model with what is trained switched off, reads the whole row. The student reads the first
    `num_prefix` tokens and the continuation. What is compared is their next token at the same
    tokens of the continuation: what the text tells the teacher, the memory has to tell the
    student. `memtx.data.ContextRows` makes such rows.

    Args:
        name: what it is called in logs.
        stream: name of the batch stream it reads.
        weight: its factor in the loss.
        chunk: how many tokens' logits to hold at a time.
        num_prefix: first tokens of a row that both read: 1 where a begin token stands there. With
            0 nothing stands before the continuation, and its first token is only read.

    Raises:
        ValueError: if `chunk` is below 1, `weight` is negative or not finite, or `num_prefix` is
            negative.

    Source: context distillation (Snell et al. 2022, arXiv 2209.15189); of documents into a cache,
    Cartridges (Eyuboglu et al. 2025, arXiv 2506.06266). Here a memory takes the text's place.

    Example:
        >>> DistillationLoss(
        ...     name="reading", stream="reading", weight=1.0, chunk=1024, num_prefix=1).num_prefix
        1
    """

    name: str
    stream: str
    weight: float
    chunk: int
    num_prefix: int

    def __post_init__(self) -> None:
        check_values(self, weight=self.weight, chunk=self.chunk)
        require(
            ok=self.num_prefix >= 0,
            owner=self,
            rule="num_prefix must not be negative",
            got={"num_prefix": self.num_prefix},
            remedy="pass 1 where rows begin with a begin token, else 0",
        )

    def check(self, model: nn.Module) -> None:
        """Refuse a model of which what is trained cannot be switched off.

        Args:
            model: the model.

        Raises:
            ValueError: if it is no `MemoryAdapter`, `MemoryLibrary` or model of `peft`.
        """
        check_switchable(self, model=model)

    def weights(self, model: nn.Module) -> dict[str, float]:
        """Give its own weight.

        Args:
            model: the model.
        """
        return {self.name: self.weight}

    def counts(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the number of tokens that are compared.

        Args:
            model: the model.
            batch: with `labels` `[batch, length]`.
        """
        return self._compared(batch["labels"]).sum()[None]

    def totals(self, model: Any, batch: Batch) -> Tensor:
        """Give the summed divergence in nats.

        Args:
            model: the `MemoryAdapter`, the `MemoryLibrary`, or a PEFT model.
            batch: with `input_ids`, `attention_mask` and `labels`, each `[batch, length]`.

        Raises:
            ValueError: if a label stands among the first `num_prefix` tokens of a row.
        """
        halves = halves_of(model)
        labels = batch["labels"]
        places = self._compared(labels)
        # Without dropout: noise in the teacher would be taught as a difference.
        with torch.no_grad(), untrained(model), evaluating(model):
            teacher = halves.hidden_states(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                position_ids=None,
                labels=labels,
            )
        # The token before predicts: places move back by one.
        wanted = teacher[:, :-1][places[:, 1:]]
        student, own = self.student(batch)
        hidden = halves.hidden_states(
            input_ids=student["input_ids"],
            attention_mask=student["attention_mask"],
            position_ids=None,
            labels=student["labels"],
        )
        given = hidden[:, :-1][own[:, 1:]]
        return chunked_kl_divergence(given, wanted, halves.head, self.chunk)[None]

    def student(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Give what the student reads of a batch, and which of its tokens are compared.

        Args:
            batch: what the teacher reads.

        Raises:
            ValueError: if a label stands among the first `num_prefix` tokens of a row.
        """
        labels = batch["labels"]
        taken = labels != IGNORED
        require(
            ok=not bool(taken[:, : self.num_prefix].any()),
            owner=self,
            rule="the first num_prefix tokens of a row must have no label: both models read them",
            got={"num_prefix": self.num_prefix},
            remedy="make rows with ContextRows, of the same prefix",
        )
        taken[:, : self.num_prefix] = True
        # What is taken goes to the front, in its order.
        order = (~taken).long().argsort(dim=1, stable=True)[:, : int(taken.sum(dim=1).max())]
        mask = taken.gather(1, order)
        own = self._compared(labels).gather(1, order) & mask
        student = {
            "input_ids": batch["input_ids"].gather(1, order),
            "attention_mask": mask.long(),
            "labels": labels.gather(1, order).masked_fill(~mask, IGNORED),
        }
        return student, own

    def _compared(self, labels: Tensor) -> Tensor:
        """Tell which tokens both predict: those of the continuation with something before them."""
        found = labels != IGNORED
        if self.num_prefix == 0:
            # Nothing stands before the student's first token.
            found = found & (found.cumsum(dim=1) > 1)
        return found
