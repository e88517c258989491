"""The states of all tensor memories of a model, carried from call to call."""

from typing import Any, final

import torch
from torch import Tensor

from memtx.checks import require
from memtx.tensor.state import TensorMemoryState


@final
class TensorMemoryStates:
    """The states of a model's tensor memories, in the order of the calls.

    Pass it as `past_key_values`: each call continues from it and leaves the states behind its
    last token in it. It holds nothing that grows, so a text may be of any length; unlike a cache
    of transformers it does not count the tokens before.

    Args:
        states: those to continue from; `[]` to start anew.

    Source: memtx's own.

    Example:
        >>> states = TensorMemoryStates(states=[])
        >>> states.detach()  # nothing carried yet
        >>> states.states
        []
    """

    def __init__(self, *, states: list[TensorMemoryState | None]) -> None:
        self.states = states

    def get_seq_length(self) -> int:
        """Count no tokens: what came before is in the states alone."""
        return 0

    def detach(self) -> None:
        """Cut the graph: backpropagation stops at the calls before."""
        self.states = [state and state.detach() for state in self.states]

    def to(self, device: torch.device) -> None:
        """Move all states.

        Args:
            device: where they shall live.
        """
        self.states = [state and state.to(device) for state in self.states]

    def reset(self, rows: Tensor) -> None:
        """Empty the states of some sequences.

        Args:
            rows: True for the sequences that start anew, `[batch]`.
        """
        self.states = [state and state.reset(rows) for state in self.states]

    def reorder(self, rows: Tensor) -> None:
        """Continue from the states of chosen sequences.

        Args:
            rows: which sequence each new row continues.
        """
        self.states = [state and state.reorder(rows) for state in self.states]

    def tensors(self) -> dict[str, Tensor]:
        """Give all tensors by name, to be saved."""
        return {
            f"{place}.{name}": tensor
            for place, state in enumerate(self.states)
            if state is not None
            for name, tensor in state.tensors().items()
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> "TensorMemoryStates":
        """Make the states again from what `tensors` gave.

        Args:
            tensors: the tensors by name.

        Raises:
            ValueError: if one is missing or of another name.
        """
        places = {int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdecimal()}
        wanted = {f"{place}.{name}" for place in places for name in ("memory", "norm")}
        require(
            ok=wanted == set(tensors),
            owner="TensorMemoryStates",
            rule="tensors must be a memory and a norm of each place",
            got={"missing": sorted(wanted - set(tensors)), "others": sorted(set(tensors) - wanted)},
            remedy="pass what tensors() gave, all of it",
        )
        found: list[TensorMemoryState | None] = [None] * (max(places, default=-1) + 1)
        for place in places:
            found[place] = TensorMemoryState(
                memory=tensors[f"{place}.memory"], norm=tensors[f"{place}.norm"]
            )
        return cls(states=found)


def state_at(cache: Any, slot: int) -> TensorMemoryState | None:
    """Give the state that a cache holds at a place; None where nothing was written yet.

    Args:
        cache: a `TensorMemoryStates`, or a `Cache` of transformers.
        slot: the place.
    """
    if isinstance(cache, TensorMemoryStates):
        return cache.states[slot] if slot < len(cache.states) else None
    layer = cache.layers[slot] if slot < len(cache.layers) else None
    state: TensorMemoryState | None = getattr(layer, "state", None)
    return state


def keep_state(cache: Any, slot: int, state: TensorMemoryState, tokens: int) -> None:
    """Leave a state at a place of a cache.

    Args:
        cache: a `TensorMemoryStates`, or a `Cache` of transformers.
        slot: the place.
        state: the state behind the last token.
        tokens: how many tokens the call had.
    """
    if isinstance(cache, TensorMemoryStates):
        cache.states += [None] * (slot + 1 - len(cache.states))
        cache.states[slot] = state
        return
    from memtx.tensor.cache import keep_in_cache

    keep_in_cache(cache, slot, state, tokens)
