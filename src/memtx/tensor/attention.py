"""Reading and writing a tensor memory as a sub-layer."""

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memtx.checks import require_positive
from memtx.context import Context
from memtx.expression import component
from memtx.tensor.multi_head import MultiHeadMemory
from memtx.tensor.states import keep_state, state_at


@final
@component
class LinearMemoryAttention(nn.Module):
    """Every token reads what came before it from a tensor memory, then is written into it.

    The memory is all there is: no softmax, no local attention, no gate, no positions. A token's
    own key and value are not in what it reads. The cost is linear in the length, and what a cache
    carries from call to call is a state of fixed size.

    Args:
        memory: the heads.
        hidden_size: width of the stream.
        bias: whether query, key and value projections add a learned vector; the output's does not.
        normalize_qkv: whether each head's query, key and value are divided by their length.

    Shapes:
        `[batch, length, hidden_size]` to the same shape.

    Raises:
        ValueError: if `hidden_size` is below 1; in a call, if a state in the cache does not fit.

    Source: `LinearMemoryAttention` of the tensor-product source, which made its projections
    inside, as here; it read its own key and value too, shared one state among the sequences of
    a batch, and took the length over all heads. The projections start as torch's do.

    Example:
        >>> import torch
        >>> from memtx import (
        ...     LinearMemoryAttention, MultiHeadMemory, TensorMemory, TensorMemoryConfig)
        >>> config = TensorMemoryConfig(dim=4, eps=1e-6, use_delta_rule=True, max_delta=10.0,
        ...                             max_memory=100.0, max_norm=1000.0)
        >>> attention = LinearMemoryAttention(
        ...     memory=MultiHeadMemory([TensorMemory(config) for _ in range(2)]),
        ...     hidden_size=8, bias=True, normalize_qkv=False)
        >>> attention(torch.ones(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self, *, memory: MultiHeadMemory, hidden_size: int, bias: bool, normalize_qkv: bool
    ) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"hidden_size": hidden_size})
        self.memory = memory
        self.hidden_size = hidden_size
        self.bias = bias
        self.normalize_qkv = normalize_qkv
        width = memory.num_heads * memory.dim
        self.q_proj = nn.Linear(hidden_size, width, bias=bias)
        self.k_proj = nn.Linear(hidden_size, width, bias=bias)
        self.v_proj = nn.Linear(hidden_size, width, bias=bias)
        self.o_proj = nn.Linear(width, hidden_size, bias=False)

    @property
    def dim(self) -> int:
        """Width of the stream it reads and writes."""
        return self.hidden_size

    def forward(
        self, x: Float[Tensor, "batch length dim"], context: Context | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Read and write the memory at every token in order.

        Args:
            x: the (normalised) stream.
            context: its tokens; None for whole rows without padding or cache.
        """
        query, key, value = (
            self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        real = document = cache = state = None
        slot = 0
        if context is not None:
            real = None if context.all_real else context.own(context.real)
            document = context.own(context.document) if context.packed else None
            cache, slot = context.cache, context.slots.take()
        if cache is not None:
            state = state_at(cache, slot)
        read, after = self.memory.read_and_write(
            query, key, value, state, real, document, cache is not None
        )
        if after is not None:
            keep_state(cache, slot, after, x.shape[1])
        added: Tensor = self.o_proj(read.flatten(-2))
        return added

    def _heads(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (self.memory.num_heads, -1))
        return F.normalize(heads, dim=-1).to(x.dtype) if self.normalize_qkv else heads
