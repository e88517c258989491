"""The health of routers during training: load, entropy, dead chapters, and remedies."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn

from memtx.checks import require, require_positive
from memtx.memory import RoutedMemoryCrossAttention
from memtx.memory.router import Routing
from memtx.modes import is_recomputing
from memtx.train.loggers import Record
from memtx.train.run import Run
from memtx.usage import ChapterUsage


@runtime_checkable
class Remedy(Protocol):
    """Does something about dead chapters, on every process alike."""

    def treat(
        self,
        run: Run,
        readers: Mapping[str, RoutedMemoryCrossAttention],
        usages: Mapping[str, ChapterUsage],
    ) -> int:
        """Change the run, given what each reader's router has chosen; give how many chapters."""


@final
class RouterHealth:
    """Watches the routers of a model in training, logs how they are, and warns.

    Every so many steps it adds to the record, for each router and over all of them: `max_load`,
    the largest share of selections that one chapter has; `entropy` of the mean probabilities as a
    share of its largest value, 1 where all chapters are used alike; `dead`, the chapters never
    chosen. The counts are those of all processes. A window is closed when it holds enough
    choices; until then it is carried on.

    Args:
        model: the model that is trained; its readers are watched from now on, in training mode.
        every: steps between looks.
        min_choices: selections that a window must hold for each routed chapter, on average, before
            a chapter that got none counts as dead.
        min_entropy: warn below this share of the largest entropy.
        remedies: treat the routers when chapters are dead.

    Raises:
        ValueError: if no layer of the model reads chapters, or a number lies outside its range.

    Source: the load and entropy that systems with experts log (as in Switch Transformers, arXiv
    2101.03961); memtx's own in the windows.

    Example:
        >>> RouterHealth.__name__  # composed in full in docs/training.md
        'RouterHealth'
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        every: int,
        min_choices: float,
        min_entropy: float,
        remedies: Sequence[Remedy],
    ) -> None:
        require_positive(owner=self, sizes={"every": every})
        require(
            ok=0.0 < min_choices < math.inf and 0.0 <= min_entropy < 1.0,
            owner=self,
            rule="min_choices must be positive and min_entropy lie in [0, 1)",
            got={"min_choices": min_choices, "min_entropy": min_entropy},
            remedy="10.0 and 0.5 are usual; a min_entropy of 0.0 never warns",
        )
        self.model = model
        self.every = every
        self.min_choices = min_choices
        self.min_entropy = min_entropy
        self.remedies = remedies
        self._readers = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, RoutedMemoryCrossAttention)
        }
        require(
            ok=bool(self._readers),
            owner=self,
            rule="the model must have a RoutedMemoryCrossAttention in it",
            got={"model": type(model).__name__},
            remedy="leave the callback out for models without routers",
        )
        self._usages = {name: _fresh(reader) for name, reader in self._readers.items()}
        self._handles = [
            reader.router.register_forward_hook(self._hook(name))
            for name, reader in self._readers.items()
        ]

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, _: Any, routing: Routing) -> None:
            # A measurement between steps, and a layer that is run again, say nothing new.
            if module.training and not is_recomputing():
                self._usages[name].add(routing)

        return note

    def close(self) -> None:
        """Watch no longer."""
        while self._handles:
            self._handles.pop().remove()

    def after_step(self, run: Run, record: Record) -> None:
        """Look at the routers if it is time, and treat them.

        Args:
            run: the run.
            record: of the step; takes the numbers.
        """
        if record["step"] % self.every != 0:
            return
        usages = {}
        for name, reader in self._readers.items():
            usages[name] = _fresh(reader)
            usages[name].take(run.parallelism.all_sum(self._usages[name].sums()))
        if not all(self._is_enough(usage) for usage in usages.values()):
            return
        self._usages = {name: _fresh(reader) for name, reader in self._readers.items()}
        record |= _numbers(usages)
        treated = 0
        if record["router/dead"]:
            for remedy in self.remedies:
                treated += remedy.treat(run, self._readers, usages)
            record |= {"router/revived": float(treated)} if self.remedies else {}
        if run.parallelism.rank == 0:
            self._warn(run.step, usages=usages, treated=treated)

    def _is_enough(self, usage: ChapterUsage) -> bool:
        routed = usage.num_chapters - usage.num_shared_chapters
        return int(usage.selections.sum()) >= self.min_choices * routed

    def _warn(self, step: int, *, usages: Mapping[str, ChapterUsage], treated: int) -> None:
        dead = {name: len(usage.dead) for name, usage in usages.items() if usage.dead}
        low = {
            name: round(_entropy(usage), 3)
            for name, usage in usages.items()
            if _entropy(usage) < self.min_entropy
        }
        if dead or low:
            done = f"; revived {treated}" if treated else ""
            warnings.warn(
                f"RouterHealth: at step {step} dead chapters by router are {dead}, entropies below "
                f"{self.min_entropy} are {low}{done}. A larger LoadBalanceLoss spreads the load.",
                stacklevel=2,
            )

    def is_urgent(self, step: int) -> bool:
        """Tell whether it looks at the routers right behind a step.

        Args:
            step: number of the step, from 1.
        """
        return step % self.every == 0

    def state_dict(self) -> dict[str, object]:
        """Give what this process has counted in the window that is open."""
        return {name: usage.sums().tolist() for name, usage in self._usages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a window.

        Args:
            state: of `state_dict`.

        Raises:
            ValueError: if it is that of other routers.
        """
        sizes = {name: len(sums) for name, sums in state.items()}
        wanted = {name: len(usage.sums()) for name, usage in self._usages.items()}
        require(
            ok=sizes == wanted,
            owner=self,
            rule="the state must be that of the same routers",
            got={"state": sizes, "model": wanted},
            remedy="resume with the model of the run",
        )
        for name, usage in self._usages.items():
            usage.take(torch.tensor(state[name], dtype=torch.double))


def _fresh(reader: RoutedMemoryCrossAttention) -> ChapterUsage:
    return ChapterUsage(
        num_chapters=reader.router.num_chapters,
        num_shared_chapters=reader.router.num_shared_chapters,
    )


def _entropy(usage: ChapterUsage) -> float:
    """Give the entropy of the mean probabilities as a share of its largest value."""
    largest = math.log(usage.num_chapters - usage.num_shared_chapters)
    return usage.entropy_of_mean / largest if largest else 1.0


def _numbers(usages: Mapping[str, ChapterUsage]) -> Record:
    """Give the worst, and then each router's own."""
    own = {
        name: {
            "dead": float(len(usage.dead)),
            "max_load": float(usage.load.max()),
            "entropy": _entropy(usage),
        }
        for name, usage in usages.items()
    }
    worst: Record = {
        "router/dead": sum(each["dead"] for each in own.values()),
        "router/max_load": max(each["max_load"] for each in own.values()),
        "router/entropy": min(each["entropy"] for each in own.values()),
    }
    return worst | {
        f"router/{name}/{key}": value for name, each in own.items() for key, value in each.items()
    }
