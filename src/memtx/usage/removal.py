"""Chapters taken out of a memory: for good, or to see what becomes of an answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from memtx.adapters import MemoryLibrary
from memtx.checks import require, require_positive
from memtx.memory import ChapterRouter
from memtx.usage.shrinking import OWNER, smaller_bank, smaller_router
from memtx.usage.weights import READERS


def delete_chapters(
    model: nn.Module, *, bank: nn.Module, chapters: Sequence[int], tokens_per_chapter: int
) -> nn.Module:
    """Take chapters out of a bank for good: the model is as if they had never been there.

    Without training. A bank of the memory tokens that are left takes the place of the old one in
    the model and in every reader of it; a router of these readers gets a scorer without the
    chapters' rows, and chooses among the rest. So nothing masks what is gone: the spec tells the
    smaller sizes, and a saved folder does not hold the numbers. Chapters that are left keep their
    order and are numbered anew. Parameters are new ones: make optimizers afterwards.

    Args:
        model: a `MemoryTransformer`, a `MemoryAdapter`, or any module with readers of the bank.
        bank: the bank, such as `model.banks[0]`.
        chapters: numbers of the chapters, from 0.
        tokens_per_chapter: memory tokens of a chapter: that of the routers, where the bank is
            routed. The last chapter may have fewer.

    Returns:
        The bank that took its place.

    Raises:
        ValueError: if the model does not read the bank, a chapter is not there, all would be gone,
            routers cut the bank into other chapters, or a part's rows are not known.
    """
    swap = _Swap.plan(model, bank, chapters=chapters, tokens_per_chapter=tokens_per_chapter)
    swap.put_in()
    return swap.smaller


@contextmanager
def without_chapters(
    model: nn.Module, *, bank: nn.Module, chapters: Sequence[int], tokens_per_chapter: int
) -> Iterator[None]:
    """Take chapters out of a bank inside a `with` block; afterwards all is as it was.

    Args:
        model: as of `delete_chapters`.
        bank: the bank.
        chapters: numbers of the chapters, from 0.
        tokens_per_chapter: memory tokens of a chapter.

    Raises:
        ValueError: as of `delete_chapters`.
    """
    swap = _Swap.plan(model, bank, chapters=chapters, tokens_per_chapter=tokens_per_chapter)
    swap.put_in()
    try:
        yield
    finally:
        swap.take_out()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Swap:
    """What stands in the place of what: the holder, the name there, before and after."""

    smaller: nn.Module
    places: list[tuple[nn.Module, str, nn.Module, nn.Module]]

    @classmethod
    def plan(
        cls, model: nn.Module, bank: Any, *, chapters: Sequence[int], tokens_per_chapter: int
    ) -> "_Swap":
        """Make all that is to be put in; the model is not touched."""
        require_positive(owner=OWNER, sizes={"tokens_per_chapter": tokens_per_chapter})
        require(
            ok=not isinstance(model, MemoryLibrary),
            owner=OWNER,
            rule="the memory must not be in a library, which reads several at once",
            got={"model": type(model).__name__},
            remedy="delete from the memory in a MemoryAdapter, and add it to the library anew",
        )
        readers = [part for part in model.modules() if getattr(part, "bank", None) is bank]
        _check_readers(readers, tokens_per_chapter=tokens_per_chapter)
        left = _left(bank.num_memory_tokens, chapters, tokens_per_chapter=tokens_per_chapter)
        smaller = smaller_bank(bank, left)
        numbers = list(dict.fromkeys((left // tokens_per_chapter).tolist()))
        instead: dict[nn.Module, nn.Module] = {bank: smaller}
        for reader in readers:
            router = getattr(reader, "router", None)
            if isinstance(router, ChapterRouter) and router not in instead:
                instead[router] = smaller_router(router, numbers)
        places = [
            (holder, name, part, instead[part])
            for holder in model.modules()
            for name, part in holder._modules.items()
            if part is not None and part in instead
        ]
        return cls(smaller=smaller, places=places)

    def put_in(self) -> None:
        for holder, name, _, after in self.places:
            holder._modules[name] = after

    def take_out(self) -> None:
        for holder, name, before, _ in self.places:
            holder._modules[name] = before


def _left(count: int, chapters: Sequence[int], *, tokens_per_chapter: int) -> Tensor:
    """Give the memory tokens that are left."""
    highest = -(-count // tokens_per_chapter) - 1
    unknown = [each for each in chapters if not (isinstance(each, int) and 0 <= each <= highest)]
    require(
        ok=bool(chapters) and not unknown,
        owner=OWNER,
        rule=f"chapters must be at least one number from 0 to {highest}",
        got={"chapters": unknown or list(chapters)},
        remedy="count chapters from 0",
    )
    tokens = torch.arange(count)
    left = tokens[~torch.isin(tokens // tokens_per_chapter, torch.tensor(list(chapters)))]
    require(
        ok=len(left) > 0,
        owner=OWNER,
        rule="at least one chapter must be left",
        got={"chapters": sorted(set(chapters)), "num_memory_tokens": count},
        remedy="to have none, take the memory out of the model",
    )
    return left


def _check_readers(readers: list[Any], *, tokens_per_chapter: int) -> None:
    strange = [type(part).__name__ for part in readers if not isinstance(part, READERS)]
    require(
        ok=bool(readers) and not strange,
        owner=OWNER,
        rule="the model must read the bank, by readers that memtx knows",
        got={"readers": strange},
        remedy="pass the model's own bank, such as model.banks[0]",
    )
    for reader in readers:
        size = getattr(reader, "tokens_per_chapter", tokens_per_chapter)
        require(
            ok=size == tokens_per_chapter,
            owner=OWNER,
            rule="tokens_per_chapter must be that of the routers of the bank",
            got={"tokens_per_chapter": tokens_per_chapter, "of a router": size},
            remedy=f"pass {size}, and number chapters as the router does",
        )
        require(
            ok=getattr(reader, "frozen", None) is None,
            owner=OWNER,
            rule="keys and values must not be kept from before",
            got={"frozen": type(reader).__name__},
            remedy="thaw the memory first, and freeze it again afterwards",
        )
