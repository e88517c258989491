"""Memories side by side, computed together."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memtx.checks import require
from memtx.expression import component
from memtx.ops.tensor_memory import (
    HeadRules,
    chunk_for,
    tensor_memory,
    tensor_memory_step,
)
from memtx.tensor.single import DecayingTensorMemory, TensorMemory, rules_of
from memtx.tensor.state import TensorMemoryState


@final
@component
class MultiHeadMemory:
    """One memory for each head, of one width; rules, decays and bounds may differ.

    All heads are computed together, and each sequence has its own state: the memories given say
    what the rules are, and what they hold themselves is not used.

    Args:
        memories: the heads.

    Raises:
        ValueError: if there is no head, one is no memory, or two differ in width.

    Source: `MultiHeadMemory` of the tensor-product source.

    Example:
        >>> from memtx import MultiHeadMemory, TensorMemory, TensorMemoryConfig
        >>> config = TensorMemoryConfig(dim=8, eps=1e-6, use_delta_rule=True, max_delta=10.0,
        ...                             max_memory=100.0, max_norm=1000.0)
        >>> MultiHeadMemory([TensorMemory(config) for _ in range(4)]).num_heads
        4
    """

    def __init__(self, memories: list[TensorMemory | DecayingTensorMemory]) -> None:
        memories = list(memories)
        kinds = [type(memory).__name__ for memory in memories]
        require(
            ok=all(isinstance(each, TensorMemory | DecayingTensorMemory) for each in memories),
            owner=self,
            rule="memories must be TensorMemory or DecayingTensorMemory",
            got={"memories": kinds},
            remedy="give one memory for each head",
        )
        dims = [memory.config.dim for memory in memories]
        require(
            ok=len(set(dims)) == 1,
            owner=self,
            rule="memories must be at least one, all of one dim",
            got={"dims": dims},
            remedy="give every head a config with the same dim",
        )
        self.memories = memories
        self._rules: dict[torch.device, HeadRules] = {}

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return len(self.memories)

    @property
    def dim(self) -> int:
        """Width of a head."""
        return self.memories[0].config.dim

    def rules(self, device: torch.device) -> HeadRules:
        """Give the numbers of the heads.

        Args:
            device: where they are needed.
        """
        if torch.compiler.is_compiling():
            return rules_of(self.memories, device)
        if device not in self._rules:
            self._rules[device] = rules_of(self.memories, device)
        return self._rules[device]

    def read_and_write(
        self,
        query: Float[Tensor, "batch length heads dim"],
        key: Float[Tensor, "batch length heads dim"],
        value: Float[Tensor, "batch length heads dim"],
        state: TensorMemoryState | None,
        real: Bool[Tensor, "batch length"] | None,
        document: Int[Tensor, "batch length"] | None,
        commit: bool,
    ) -> tuple[Float[Tensor, "batch length heads dim"], TensorMemoryState | None]:
        """Let every token read, then be written, in order.

        Args:
            query: the queries.
            key: the keys.
            value: the values.
            state: what was written before; None for nothing.
            real: whether a token stands there; None, everywhere. Others read zeros.
            document: a number for each document of a row, each of which starts anew; None for one.
                The state given belongs to the first.
            commit: whether to give the state behind the last token; else None comes in its place.

        Raises:
            ValueError: if query, key and value are not of these heads and of one shape, or the
                state is of another batch, heads, dim or device.
        """
        batch, length = query.shape[:2]
        shapes = [tuple(x.shape) for x in (query, key, value)]
        wanted = (batch, length, self.num_heads, self.dim)
        require(
            ok=all(shape == wanted for shape in shapes),
            owner=self,
            rule=f"query, key and value must be [batch, length, {self.num_heads}, {self.dim}]",
            got={"shapes": shapes},
            remedy="cut each into as many heads as there are memories, of their dim",
        )
        if state is not None:
            sizes = {"batch": batch, "heads": self.num_heads, "dim": self.dim}
            state.check(owner=self, device=query.device, **sizes)
        rules = self.rules(query.device)
        memory, norm = (None, None) if state is None else (state.memory, state.norm)
        if length == 1 and commit and memory is not None and norm is not None:
            read, memory, norm = tensor_memory_step(query, key, value, rules, memory, norm, real)
        else:
            chunk = chunk_for(length, self.dim)
            read, memory, norm = tensor_memory(
                query, key, value, rules, memory, norm, real, document, chunk, commit
            )
        if memory is None or norm is None:
            return read, None
        return read, TensorMemoryState(memory=memory, norm=norm)
