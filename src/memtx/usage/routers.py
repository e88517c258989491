"""Statistics of routers, had from any forward without changing it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require
from memtx.memory.router import ChapterRouter, Routing
from memtx.modes import is_recomputing


@final
class ChapterUsage:
    """What one router has chosen so far. Chapters are numbered as the bank numbers them.

    A decision is the choice of one segment: a token, a window, a prompt or a sequence. It counts
    once, however many calls of a cached generation the segment spans; padding decides nothing.

    Args:
        num_chapters: number of chapters of the router.
        num_shared_chapters: how many of the first are read by all, and so never chosen.

    Source: the load and entropy that systems with experts log (as in Switch Transformers, arXiv
    2101.03961); memtx's own in counting decisions.

    Example:
        >>> usage = ChapterUsage(num_chapters=5, num_shared_chapters=1)
        >>> usage.num_decisions, usage.dead
        (0, [1, 2, 3, 4])
    """

    def __init__(self, *, num_chapters: int, num_shared_chapters: int) -> None:
        self.num_chapters = num_chapters
        self.num_shared_chapters = num_shared_chapters
        routed = num_chapters - num_shared_chapters
        self._selections = torch.zeros(routed, dtype=torch.long)
        self._probability = torch.zeros(routed, dtype=torch.double)
        self._entropy = torch.zeros((), dtype=torch.double)
        self._decisions = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def add(self, routing: Routing) -> None:
        """Count what the router chose in one forward.

        Args:
            routing: what it gave.
        """
        # Sums stay where the model is: nothing waits for a GPU until a number is asked for.
        device = routing.logits.device
        logs = torch.log_softmax(routing.logits, dim=-1).to(_widest(device))
        counted = routing.counted[..., None]
        probabilities = torch.where(counted, logs.exp(), 0.0)
        routed = routing.chapters[..., self.num_shared_chapters :] - self.num_shared_chapters
        chosen = torch.zeros(len(self._selections), dtype=torch.long, device=device)
        chosen.scatter_add_(0, routed.flatten(), counted.expand_as(routed).flatten().long())
        entropy = -(probabilities * torch.where(counted, logs, 0.0)).sum()
        self._selections = self._selections.to(device) + chosen
        self._probability = self._probability.to(logs) + probabilities.sum(dim=(0, 1))
        self._entropy = self._entropy.to(logs) + entropy
        self._decisions = self._decisions.to(device) + routing.counted.sum()

    def note(self, module: nn.Module, inputs: Any, routing: Routing) -> None:
        """Be a router's forward hook: add what it gave, but not when a layer is recomputed.

        Args:
            module: the router.
            inputs: of the router.
            routing: what it gave.
        """
        if not is_recomputing():
            self.add(routing)

    def sums(self) -> Float[Tensor, " sums"]:
        """Give all that was counted as one vector on the CPU, to be added up over processes."""
        counted = (self._selections, self._probability, self._entropy[None], self._decisions[None])
        return torch.cat([each.cpu().double() for each in counted])

    def take(self, sums: Float[Tensor, " sums"]) -> None:
        """Stand where such a vector says, whatever was counted before.

        Args:
            sums: of `sums`, or a sum of several.
        """
        routed = self.num_chapters - self.num_shared_chapters
        selections, probability, entropy, decisions = sums.split([routed, routed, 1, 1])
        self._selections, self._decisions = selections.long(), decisions[0].long()
        self._probability, self._entropy = probability, entropy[0]

    @property
    def num_decisions(self) -> int:
        """How many segments have chosen."""
        return int(self._decisions)

    @property
    def selections(self) -> Int[Tensor, " chapters"]:
        """How often each chapter was chosen; 0 for the shared ones, which are not chosen."""
        return torch.cat([torch.zeros(self.num_shared_chapters).long(), self._selections.cpu()])

    @property
    def load(self) -> Float[Tensor, " chapters"]:
        """The fraction of all selections that went to each chapter; zeros before the first."""
        selections = self.selections.double()
        return selections / selections.sum().clamp(min=1)

    @property
    def dead(self) -> list[int]:
        """The routed chapters that were never chosen."""
        never = (self._selections.cpu() == 0).nonzero().flatten() + self.num_shared_chapters
        return [int(chapter) for chapter in never]

    @property
    def entropy_of_mean(self) -> float:
        """Entropy, in nats, of the mean probabilities: `log C` where all are used alike."""
        mean = self._probability.cpu().double() / max(self.num_decisions, 1)
        return float(torch.special.entr(mean).sum())

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of a decision, in nats: 0 where the router is sure each time."""
        return float(self._entropy) / max(self.num_decisions, 1)

    def __repr__(self) -> str:
        return (
            f"ChapterUsage(num_decisions={self.num_decisions}, "
            f"max_load={float(self.load.max()):.3f}, "
            f"entropy_of_mean={self.entropy_of_mean:.3f}, mean_entropy={self.mean_entropy:.3f}, "
            f"dead={len(self.dead)})"
        )


# Read like a dict of routers by name, filled while `watch_routing` is open.
RoutingStatistics = Mapping[str, ChapterUsage]


@contextmanager
def watch_routing(model: nn.Module) -> Iterator[RoutingStatistics]:
    """Count what the routers of a model choose in the forwards inside a `with` block.

    Outputs and gradients stay as they are, to the bit; a layer that is recomputed in a backward
    pass counts once. After the block the numbers stay and nothing more is counted. Models that are
    compiled as a whole may leave out hooks: watch them uncompiled.

    Args:
        model: a `MemoryTransformer`, a `MemoryAdapter`, or any module with routers in it.

    Raises:
        ValueError: if the model has no router.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> from memtx import ChapterRouter, Linear, Normal, TokenRouting
        >>> router = ChapterRouter(
        ...     num_chapters=5, num_shared_chapters=1, top_k=2, routed_scale=1.0,
        ...     scorer=Linear(in_features=4, out_features=4, bias=False, init=Normal(std=1.0)),
        ...     strategy=TokenRouting(), losses=[])
        >>> model = torch.nn.ModuleDict({"router": router})
        >>> with watch_routing(model) as statistics:
        ...     chosen = model["router"](torch.randn(3, 7, 4))
        >>> statistics["router"].num_decisions
        21
        >>> round(float(statistics["router"].load.sum()), 6)
        1.0
    """
    routers = {
        name: part for name, part in model.named_modules() if isinstance(part, ChapterRouter)
    }
    require(
        ok=bool(routers),
        owner="watch_routing",
        rule="the model must have a ChapterRouter in it",
        got={"model": type(model).__name__},
        remedy="watch a model with routed memory",
    )
    usages = {
        name: ChapterUsage(
            num_chapters=router.num_chapters, num_shared_chapters=router.num_shared_chapters
        )
        for name, router in routers.items()
    }
    handles = [router.register_forward_hook(usages[name].note) for name, router in routers.items()]
    try:
        yield usages
    finally:
        for handle in handles:
            handle.remove()


def _widest(device: torch.device) -> torch.dtype:
    """Give float64 where the device has it: sums of many small numbers."""
    return torch.float32 if device.type == "mps" else torch.float64
