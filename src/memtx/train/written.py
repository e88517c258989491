"""Writing what is new into chosen memory tokens, while the others stay as they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from memtx.checks import require
from memtx.memory import FactorizedMemoryBank, SinkMemoryBank
from memtx.memory.sparse import row_parameter
from memtx.train.loggers import Record
from memtx.train.run import Run


def tokens_of_chapters(chapters: Sequence[int], *, tokens_per_chapter: int) -> list[int]:
    """Give the memory tokens of some chapters, in order.

    Args:
        chapters: numbers of the chapters, from 0.
        tokens_per_chapter: memory tokens of a chapter.
    """
    return [
        chapter * tokens_per_chapter + token
        for chapter in sorted(set(chapters))
        for token in range(tokens_per_chapter)
    ]


@final
class WrittenTokens:
    """Lets a run write some memory tokens of a bank; all others stay as they are, to the bit.

    A callback that is in force around all steps: the gradient of the other rows is zero before it
    is clipped or reaches the optimizer, whose moments of them stay zero as well. The rest of the
    model learns as its groups say; to write the bank alone, freeze them (`learning_rate=0.0`).

    Args:
        bank: the bank.
        tokens: numbers of the memory tokens that may be written, as readers number them: those of
            chapters (`tokens_of_chapters`), or those the new text reads and the background does
            not (`most_particular`).

    Raises:
        ValueError: if a token is not there, is an empty one of a `SinkMemoryBank`, or stands twice,
            there is none, or the bank has no parameter with a row for each; on running, if its
            group decays weights, the optimizer remembers other rows, or it is sharded.

    Source: sparse memory fine-tuning (Lin et al. 2025, arXiv 2510.15103), for any reader.

    Example:
        >>> from memtx import Normal, StandardMemoryBank
        >>> bank = StandardMemoryBank(num_memory_tokens=8, dim=4, init=Normal(std=1.0))
        >>> WrittenTokens(bank=bank, tokens=tokens_of_chapters([1], tokens_per_chapter=2)).tokens
        [2, 3]
    """

    def __init__(self, *, bank: nn.Module, tokens: Sequence[int]) -> None:
        self.bank = bank
        self.tokens = list(tokens)
        self._sinks = bank.num_sinks if isinstance(bank, SinkMemoryBank) else 0
        count = cast("Any", bank).num_memory_tokens
        unknown = [each for each in self.tokens if not self._sinks <= each < count]
        require(
            ok=bool(self.tokens) and not unknown and len(set(self.tokens)) == len(self.tokens),
            owner=self,
            rule=f"tokens must be distinct numbers from {self._sinks} to {count - 1}, at least one",
            got={"tokens": unknown or self.tokens[:5]},
            remedy="choose memory tokens that can learn",
        )
        stored = self._stored
        row_parameter(stored)
        shared = isinstance(stored, FactorizedMemoryBank) and stored.directions.requires_grad
        require(
            ok=not shared,
            owner=self,
            rule="the directions of a FactorizedMemoryBank, which all its tokens share, must stay",
            got={"directions.requires_grad": True},
            remedy="call bank.directions.requires_grad_(False)",
        )

    @property
    def _stored(self) -> nn.Module:
        bank = self.bank
        return cast("nn.Module", bank.stored) if isinstance(bank, SinkMemoryBank) else bank

    @property
    def rows(self) -> Tensor:
        """Which rows of the bank's parameter may be written, `[rows]` on the CPU."""
        return torch.tensor(self.tokens) - self._sinks

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Hold the other rows for the steps of a run.

        Args:
            run: the run.

        Raises:
            ValueError: if the bank is in no group, its group decays weights, the optimizer
                remembers other rows, or the bank is sharded.
        """
        parameter = row_parameter(self._stored)
        self._check(run, parameter)
        closed = torch.ones(parameter.shape[0], dtype=torch.bool)
        closed[self.rows] = False
        closed = closed.to(parameter.device)
        handle = parameter.register_hook(lambda gradient: _opened(gradient, closed=closed))
        try:
            yield
        finally:
            handle.remove()

    def _check(self, run: Run, parameter: nn.Parameter) -> None:
        decays = [
            group.weight_decay
            for group in run.groups
            if any(each is parameter for each in group.parameters()) and not group.frozen
        ]
        moments = run.optimizer.state.get(parameter, {})
        others = torch.ones(parameter.shape[0], dtype=torch.bool)
        others[self.rows] = False
        remembered = [
            name
            for name, each in moments.items()
            if isinstance(each, Tensor)
            and each.shape == parameter.shape
            and bool(each[others.to(each.device)].any())
        ]
        require(
            ok=decays == [0.0] and not remembered and not hasattr(parameter, "full_tensor"),
            owner=self,
            rule="the bank must be whole, in a group that learns without weight decay, and the "
            "optimizer must remember nothing of its other rows: they would move",
            got={
                "weight_decay": decays,
                "remembered": remembered,
                "sharded": hasattr(parameter, "full_tensor"),
            },
            remedy="give the bank a group of its own with weight_decay=0.0, and begin with Fresh()",
        )

    def after_step(self, run: Run, record: Record) -> None:
        """Do nothing.

        Args:
            run: not used.
            record: not used.
        """

    def is_urgent(self, step: int) -> bool:
        """Tell that it can be told of any step later.

        Args:
            step: not used.
        """
        return False

    def state_dict(self) -> dict[str, object]:
        """Give nothing: a resumed run is composed with the same tokens."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take nothing up.

        Args:
            state: not used.
        """


def _opened(gradient: Tensor, *, closed: Tensor) -> Tensor:
    """Give a gradient that is zero in closed rows."""
    if gradient.is_sparse:
        found = gradient.coalesce()
        keep = ~closed[found.indices()[0]]
        return torch.sparse_coo_tensor(
            found.indices()[:, keep], found.values()[keep], found.shape, is_coalesced=True
        )
    return gradient.masked_fill(closed[:, None], 0.0)
