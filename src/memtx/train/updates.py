"""Updates that a gradient which is not finite does not get through."""

from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from memtx.train.run import Guard, Run
from memtx.train.taken import Taken

# Of torch, whose fused kernels can leave an update out by a number on the device.
_GATED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)


@runtime_checkable
class Updates(Protocol):
    """Changes the parameters by a step's gradient, unless that is not finite."""

    def update(self, taken: Taken) -> None:
        """Update by the gradient of a step, which lies in the parameters."""


def updates_of(run: Run) -> Updates:
    """Give the updates of a run: such that need not wait for the device where there are any.

    Args:
        run: the run.
    """
    guards = [callback for callback in run.callbacks if isinstance(callback, Guard)]
    optimizer = run.optimizer
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if guards or run.scaler.is_enabled() or type(optimizer) not in _GATED or not fused:
        return LookedAtFirst(run=run, guards=guards)
    return Gated(run=run)


@final
class LookedAtFirst:
    """Waits for a step's numbers, looks at them, and only then updates: the plain way.

    Args:
        run: the run.
        guards: look at the numbers as well.

    Source: what a loop does that reads its loss before `optimizer.step()`.

    Example:
        >>> LookedAtFirst.__name__  # made by `updates_of`
        'LookedAtFirst'
    """

    def __init__(self, *, run: Run, guards: list[Guard]) -> None:
        self.run = run
        self.guards = guards

    def update(self, taken: Taken) -> None:
        """Update, if the numbers of the step may change the parameters.

        Args:
            taken: the step.

        Raises:
            FloatingPointError: if they may not.
        """
        taken.check(self.guards)
        self.run.scaler.step(self.run.optimizer)
        self.run.scaler.update()


@final
class Gated:
    """Updates without waiting: the device itself leaves the update out if a number is not finite.

    From then on it leaves out every update, so that parameters and moments are those of the step
    before when the host gets to know of it.

    Args:
        run: the run, whose optimizer is one of torch's fused ones.

    Source: `torch.amp.GradScaler`, which closes the same gate, `found_inf`, when half precision
    overflows.

    Example:
        >>> Gated.__name__  # made by `updates_of`
        'Gated'
    """

    def __init__(self, *, run: Run) -> None:
        self.run = run
        self._closed: Tensor | None = None

    def update(self, taken: Taken) -> None:
        """Update, or leave it out, as the numbers are.

        Args:
            taken: the step.
        """
        # Zero as long as all was finite; not a number from then on.
        sound = (taken.decisive * 0.0).sum()
        self._closed = sound if self._closed is None else self._closed + sound
        optimizer: Any = self.run.optimizer
        optimizer.found_inf = (self._closed != 0.0).float()
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
