"""Dead chapters that are given another beginning."""

import math
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from memtx.checks import refusal, require
from memtx.memory import RoutedMemoryCrossAttention
from memtx.train.run import Run
from memtx.usage import ChapterUsage

Rows = list[tuple[slice, slice]]


@final
class ReviveDead:
    """Gives a dead chapter a noised copy of one that is much used, and the moments of a new one.

    A router's score for a dead chapter becomes that for one it chooses often, so that both are
    chosen and can part; the busiest are copied first, in turn. The chapter's memory tokens are
    copied likewise if nothing has read them: every router of the bank has left the chapter alone,
    and no layer reads the whole bank. The optimizer's moments of these rows become zero. All
    processes do the same: the noise follows from seed and step.

    Args:
        noise: standard deviation of the noise, as a share of that of the copied row.
        seed: of the noise.

    Raises:
        ValueError: if `noise` is not positive and finite.

    Source: the revival of unused entries of a codebook (Dhariwal et al. 2020, Jukebox, arXiv
    2005.00341), carried over to chapters: a copy of a used one instead of a vector of the batch.

    Example:
        >>> ReviveDead(noise=0.1, seed=0).noise
        0.1
    """

    def __init__(self, *, noise: float, seed: int) -> None:
        require(
            ok=0.0 < noise < math.inf,
            owner=self,
            rule="noise must be positive and finite",
            got={"noise": noise},
            remedy="0.1 is usual: without noise copies would stay equal",
        )
        self.noise = noise
        self.seed = seed

    @torch.no_grad()
    def treat(
        self,
        run: Run,
        readers: Mapping[str, RoutedMemoryCrossAttention],
        usages: Mapping[str, ChapterUsage],
    ) -> int:
        """Revive what is dead, and give how many chapters that are, added up over the routers.

        Args:
            run: the run; its parameters and the optimizer's moments are changed.
            readers: the layers that read chapters, by name.
            usages: what their routers have chosen.
        """
        # On the CPU: the same numbers in every process, whatever computes there.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + run.step)
        revived = 0
        for name, reader in readers.items():
            pairs = _pairs(usages[name].selections, dead=usages[name].dead)
            first = reader.router.num_shared_chapters
            rows = [_row(dead - first, source - first) for dead, source in pairs]
            for parameter in _scores(reader):
                self._copy(run, parameter, rows=rows, generator=generator)
            revived += len(pairs)
        read_whole = _read_whole(run.objective)
        for bank, size, selections in _banks(readers, usages):
            if id(bank) in read_whole:
                continue
            dead = [
                chapter
                for chapter in range(_shared(readers, bank), len(selections))
                if not selections[chapter]
            ]
            rows = [
                (_span(chapter, size), _span(source, size))
                for chapter, source in _pairs(selections, dead=dead)
            ]
            tokens = _tokens(bank)
            if tokens is not None:
                self._copy(run, tokens, rows=rows, generator=generator)
        return revived

    def _copy(
        self, run: Run, parameter: nn.Parameter, *, rows: Rows, generator: torch.Generator
    ) -> None:
        """Copy rows of a parameter onto others, with noise, and let their moments begin anew."""
        if not rows or not parameter.requires_grad:
            return

        def copied(whole: Tensor) -> Tensor:
            new = whole.clone()
            for target, source in rows:
                kept = new[target] = whole[source]
                # A bias is copied as it is: noise in it would prefer one for every token.
                if kept.ndim > 1:
                    noise = torch.randn(kept.shape, generator=generator).to(kept)
                    new[target] += self.noise * kept.std() * noise
            return new

        def cleared(whole: Tensor) -> Tensor:
            new = whole.clone()
            for target, _ in rows:
                new[target] = 0
            return new

        _edit(parameter, copied)
        for name, moment in run.optimizer.state.get(parameter, {}).items():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                if not moment.is_floating_point():
                    message = refusal(
                        owner=self,
                        rule="the moments must be kept as numbers, to be set to zero",
                        got={"moment": name, "dtype": moment.dtype},
                        remedy="revive chapters under AdamW, Adam or SGD",
                    )
                    raise ValueError(message)
                _edit(moment, cleared)


def _edit(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Change a tensor in place; of one that is sharded, every process changes its own part."""
    held = tensor.detach()
    if isinstance(held, DTensor):
        new = distribute_tensor(change(held.full_tensor()), held.device_mesh, held.placements)
        held.to_local().copy_(new.to_local())
    else:
        held.copy_(change(held))


def _pairs(selections: Tensor, *, dead: list[int]) -> list[tuple[int, int]]:
    """Give each dead chapter one that is chosen, the busiest first, in turn."""
    order = selections.argsort(descending=True, stable=True)
    alive = [int(chapter) for chapter in order if selections[chapter]]
    return [(chapter, alive[number % len(alive)]) for number, chapter in enumerate(dead) if alive]


def _row(target: int, source: int) -> tuple[slice, slice]:
    return _span(target, 1), _span(source, 1)


def _span(number: int, size: int) -> slice:
    return slice(number * size, (number + 1) * size)


def _scores(reader: RoutedMemoryCrossAttention) -> list[nn.Parameter]:
    """Give the parameters of a scorer that have a row for each routed chapter."""
    scorer = reader.router.scorer
    named = dict(scorer.named_parameters()) if isinstance(scorer, nn.Module) else {}
    # `weight` and `shift` of a Linear, `up` of a LowRankLinear, whose `down` has rows of its own.
    return [parameter for name, parameter in named.items() if name.rpartition(".")[2] != "down"]


def _banks(
    readers: Mapping[str, RoutedMemoryCrossAttention], usages: Mapping[str, ChapterUsage]
) -> list[tuple[nn.Module, int, Tensor]]:
    """Give each bank, the size of its chapters, and how often all its routers chose each.

    A bank that readers cut into chapters of different sizes is left as it is.
    """
    found: dict[int, tuple[nn.Module, set[int], list[Tensor]]] = {}
    for name, reader in readers.items():
        bank = reader.bank
        if isinstance(bank, nn.Module):
            _, sizes, counts = found.setdefault(id(bank), (bank, set(), []))
            sizes.add(reader.tokens_per_chapter)
            counts.append(usages[name].selections)
    return [
        (bank, sizes.pop(), torch.stack(counts).sum(dim=0))
        for bank, sizes, counts in found.values()
        if len(sizes) == 1
    ]


def _read_whole(model: nn.Module) -> set[int]:
    """Give the banks that a layer reads without a router."""
    return {
        id(part.bank)
        for part in model.modules()
        if hasattr(part, "bank") and not isinstance(part, RoutedMemoryCrossAttention)
    }


def _shared(readers: Mapping[str, RoutedMemoryCrossAttention], bank: nn.Module) -> int:
    """Give how many of the first chapters of a bank some reader always reads."""
    own = [reader.router for reader in readers.values() if id(reader.bank) == id(bank)]
    return max(router.num_shared_chapters for router in own)


def _tokens(bank: nn.Module) -> nn.Parameter | None:
    """Give the parameter of a bank that has a row for each memory token, or None."""
    for name in ("tokens", "coordinates"):
        held = getattr(bank, name, None)
        if isinstance(held, nn.Parameter):
            return held
    return None
