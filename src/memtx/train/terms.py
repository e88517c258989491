"""What is minimised: weighted terms, each a mean over the tokens of the whole global batch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from memtx.adapters import MemoryAdapter, MemoryLibrary, halves_of
from memtx.adapters.families import is_peft
from memtx.checks import require, require_positive
from memtx.data.protocols import Batch
from memtx.losses import router_loss_weights
from memtx.models.halves import TransformerHalves
from memtx.modes import evaluating
from memtx.ops.linear_losses import chunked_cross_entropy, chunked_kl_divergence
from memtx.train.moving import count, count_labels, labelled, unpadded


@runtime_checkable
class Term(Protocol):
    """One term: the stream it reads, its weight, and sum and count over a batch's tokens."""

    @property
    def name(self) -> str:
        """What it is called in logs."""

    @property
    def stream(self) -> str:
        """Name of the batch stream it reads."""

    @property
    def weight(self) -> float:
        """Its factor in the loss."""

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the term is not made for."""

    def weights(self, model: nn.Module) -> dict[str, float]:
        """Give the name and the factor of each of its components."""

    def counts(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give how many things of the batch each component averages over, `[components]`."""

    def totals(self, model: Any, batch: Batch) -> Tensor:
        """Give the sum of each component over these, `[components]`."""


def check_values(owner: object, *, weight: float, chunk: int) -> None:
    """Refuse the values of a term that are out of range.

    Args:
        owner: the term.
        weight: its factor in the loss.
        chunk: how many tokens' logits it holds.

    Raises:
        ValueError: if `chunk` is below 1 or `weight` is negative or not finite.
    """
    require_positive(owner=owner, sizes={"chunk": chunk})
    require(
        ok=math.isfinite(weight) and weight >= 0.0,
        owner=owner,
        rule="weight must be finite and not negative",
        got={"weight": weight},
        remedy="pass 0.0 to only measure the term",
    )


def check_switchable(owner: object, *, model: nn.Module) -> None:
    """Refuse a model that `untrained` cannot switch off.

    Args:
        owner: the term that compares a model with itself, switched off.
        model: the model.

    Raises:
        ValueError: if it is no `MemoryAdapter`, `MemoryLibrary` or model of `peft`.
    """
    require(
        ok=isinstance(model, MemoryAdapter | MemoryLibrary) or is_peft(model),
        owner=owner,
        rule="the model must be a MemoryAdapter, a MemoryLibrary or a PEFT model, which can be "
        "switched off",
        got={"model": type(model).__name__},
        remedy="leave the term out for other models",
    )


@final
@dataclass(frozen=True, kw_only=True)
class NextTokenLoss:
    """Cross-entropy of the next token where there is a label.

    Args:
        name: what it is called in logs.
        stream: name of the batch stream it reads.
        weight: its factor in the loss.
        chunk: how many tokens' logits to hold at a time.

    Raises:
        ValueError: if `chunk` is below 1 or `weight` is negative or not finite.

    Source: maximum likelihood; logits are made only where a label is and never all at once.

    Example:
        >>> NextTokenLoss(name="facts", stream="facts", weight=1.0, chunk=1024).weight
        1.0
    """

    name: str
    stream: str
    weight: float
    chunk: int

    def __post_init__(self) -> None:
        check_values(self, weight=self.weight, chunk=self.chunk)

    def check(self, model: nn.Module) -> None:
        """Accept any model.

        Args:
            model: the model.
        """

    def weights(self, model: nn.Module) -> dict[str, float]:
        """Give its own weight, and that of each loss of a router in the model.

        Args:
            model: the model.
        """
        own = {self.name: self.weight}
        routers = router_loss_weights(model)
        return own | {f"{self.name}/{name}": weight for name, weight in routers.items()}

    def counts(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the number of labels that have a token before them, and 1 for each router loss.

        Args:
            model: the model.
            batch: with `labels` `[batch, length]`.
        """
        others = len(self.weights(model)) - 1
        return torch.tensor([count_labels(batch["labels"]), *[1] * others])

    def totals(self, model: Any, batch: Batch) -> Tensor:
        """Give the summed cross-entropy in nats, and the losses of routers.

        Args:
            model: a causal language model, with or without memory.
            batch: with `input_ids`, `attention_mask` and `labels`, each `[batch, length]`.
        """
        halves = halves_of(model)
        # A model of memtx asks a mask whether all is real, for which the host would wait.
        spared = unpadded(batch) and isinstance(halves, TransformerHalves)
        hidden = halves.hidden_states(
            input_ids=batch["input_ids"],
            attention_mask=None if spared else batch["attention_mask"],
            position_ids=batch.get("position_ids"),
            labels=batch["labels"],
        )
        places = labelled(batch)
        given = hidden.flatten(0, 1).index_select(0, places)
        targets = batch["labels"].flatten().index_select(0, places + 1)
        text = chunked_cross_entropy(given, targets, halves.head, self.chunk)
        found = {name: value for name, (value, _) in halves.router_losses().items()}
        # A memory that is switched off has routers that chose nothing.
        zero = torch.zeros_like(text)
        return torch.stack([text, *(found.get(name, zero) for name in router_loss_weights(model))])


@final
@dataclass(frozen=True, kw_only=True)
class LocalityLoss:
    """KL from the model with what is trained switched off to the same model, on background text.

    Off are the memory of a `MemoryAdapter`, all of a `MemoryLibrary`, and the LoRA of a model of
    `peft` unless it is frozen.

    What the base says about everything else is its own best record: holding the model with
    memory to it keeps teaching local.

    Args:
        name: what it is called in logs.
        stream: name of the batch stream it reads.
        weight: its factor in the loss.
        chunk: how many tokens' logits to hold at a time.

    Raises:
        ValueError: if `chunk` is below 1 or `weight` is negative or not finite.

    Source: the locality term of MEND (Mitchell et al. 2022, arXiv 2110.11309), KL(base || model).

    Example:
        >>> LocalityLoss(name="locality", stream="background", weight=1.0, chunk=1024).stream
        'background'
    """

    name: str
    stream: str
    weight: float
    chunk: int

    def __post_init__(self) -> None:
        check_values(self, weight=self.weight, chunk=self.chunk)

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
        """Give the number of real tokens.

        Args:
            model: the model.
            batch: with `attention_mask` `[batch, length]`.
        """
        return torch.tensor([count(batch["attention_mask"])])

    def totals(self, model: Any, batch: Batch) -> Tensor:
        """Give the summed divergence in nats.

        Args:
            model: the `MemoryAdapter`, the `MemoryLibrary`, or a PEFT model.
            batch: with `input_ids` and `attention_mask`, each `[batch, length]`.
        """
        halves = halves_of(model)
        tokens: dict[str, Any] = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "position_ids": batch.get("position_ids"),
            "labels": batch["labels"],
        }
        # Without dropout: noise in the teacher would be taught as a difference.
        with torch.no_grad(), untrained(model), evaluating(model):
            teacher = halves.hidden_states(**tokens)
        hidden = halves.hidden_states(**tokens)
        real = batch["attention_mask"].bool()
        return chunked_kl_divergence(hidden[real], teacher[real], halves.head, self.chunk)[None]


@contextmanager
def untrained(model: Any) -> Iterator[None]:
    """Switch off what is trained: the memory, and a LoRA in the base unless it is frozen.

    Args:
        model: a `MemoryAdapter`, a `MemoryLibrary`, or a PEFT model.
    """
    carries = isinstance(model, MemoryAdapter | MemoryLibrary)
    base: Any = model.base if carries else model
    with ExitStack() as off:
        if carries:
            off.enter_context(model.disabled())
        if is_peft(base) and any(parameter.requires_grad for parameter in base.parameters()):
            off.enter_context(base.disable_adapter())
        yield


@final
class Objective(nn.Module):
    """A model and the terms it is trained on. Called with batches, it gives each term's sum.

    Args:
        model: the model.
        terms: the terms, with distinct names.

    Shapes:
        A dict of batches by stream to a vector `[components]` of sums.

    Raises:
        ValueError: if there is no term, two bear one name, or one does not fit the model.

    Source: memtx's own. Sums and counts are kept apart so that a mean is that of the global
    batch, however it is cut into processes and accumulation steps.

    Example:
        >>> from torch import nn
        >>> term = NextTokenLoss(name="text", stream="text", weight=1.0, chunk=1024)
        >>> Objective(model=nn.Identity(), terms=[term]).streams
        ['text']
    """

    def __init__(self, *, model: nn.Module, terms: Sequence[Term]) -> None:
        super().__init__()
        names = [term.name for term in terms]
        require(
            ok=bool(names) and len(set(names)) == len(names),
            owner=self,
            rule="terms must be at least one, with distinct names",
            got={"names": names},
            remedy="name each term differently",
        )
        for term in terms:
            term.check(model)
        self.model = model
        self.terms = list(terms)
        self.weights: dict[str, float] = {}
        for term in terms:
            self.weights |= term.weights(model)

    @property
    def streams(self) -> list[str]:
        """Names of the batch streams the terms read."""
        return sorted({term.stream for term in self.terms})

    def counts(self, batches: dict[str, Batch]) -> Tensor:
        """Give how many things each component averages over, `[components]`.

        Args:
            batches: a batch for each stream.
        """
        return torch.cat([term.counts(self.model, batches[term.stream]) for term in self.terms])

    def forward(self, batches: dict[str, Batch]) -> Tensor:
        """Give the sum of each component, `[components]`, in the order of `weights`.

        Args:
            batches: a batch for each stream.
        """
        return torch.cat([term.totals(self.model, batches[term.stream]) for term in self.terms])
