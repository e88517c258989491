"""Dense reading: every position reads the whole bank."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memtx.context import Context
from memtx.expression import component
from memtx.interfaces import MemoryBank, Projection
from memtx.memory.frozen import FrozenReads
from memtx.ops.memory_read import dense_read
from memtx.projections import check_heads, check_source


@final
@component
class MemoryCrossAttention(nn.Module):
    """Cross-attention from the stream to all tokens of a memory bank, with grouped heads.

    Keys and values come from the bank alone, so they are projected once per forward whatever the
    batch, and nothing of the read enters a KV cache. With an `o_proj` that starts at zero a fresh
    memory changes nothing.

    Args:
        bank: the memory tokens; pass one instance to several readers to share it.
        q_proj: map `[dim, num_heads * head_dim]` of the stream.
        k_proj: map `[bank.dim, num_kv_heads * head_dim]` of the memory tokens.
        v_proj: the same sizes as `k_proj`.
        o_proj: map `[num_heads * head_dim, dim]` back to the stream.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads; divides `num_heads`.
        dropout: probability of dropping an attention weight in training.

    Shapes:
        `[batch, length, dim]` to `[batch, length, dim]`.

    Raises:
        ValueError: if bank, projections, heads or widths do not meet.

    Source: the memory cross-attention of the mixture-of-chapters source; the cost of the batch
    is folded into the query axis.

    Example:
        >>> import torch
        >>> from memtx import Linear, MemoryCrossAttention, Normal, StandardMemoryBank, Zeros
        >>> def linear() -> Linear:
        ...     return Linear(in_features=8, out_features=8, bias=False, init=Normal(std=0.02))
        >>> read = MemoryCrossAttention(
        ...     bank=StandardMemoryBank(num_memory_tokens=16, dim=8, init=Normal(std=1.0)),
        ...     q_proj=linear(), k_proj=linear(), v_proj=linear(),
        ...     o_proj=Linear(in_features=8, out_features=8, bias=False, init=Zeros()),
        ...     num_heads=2, num_kv_heads=2, dropout=0.0)
        >>> bool((read(torch.ones(1, 3, 8)) == 0).all())
        True
    """

    ignores_context = True

    def __init__(
        self,
        *,
        bank: MemoryBank,
        q_proj: Projection,
        k_proj: Projection,
        v_proj: Projection,
        o_proj: Projection,
        num_heads: int,
        num_kv_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_heads(
            owner=self,
            q_proj=q_proj,
            k_proj=k_proj,
            v_proj=v_proj,
            o_proj=o_proj,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            dropout=dropout,
        )
        check_source(owner=self, k_proj=k_proj, v_proj=v_proj, of="bank.dim", dim=bank.dim)
        self.bank = bank
        self.q_proj = q_proj
        self.k_proj = k_proj
        self.v_proj = v_proj
        self.o_proj = o_proj
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.dropout = dropout
        # What `memtx.generate.freeze_for_inference` puts here; never saved.
        self.frozen: FrozenReads | None = None

    @property
    def dim(self) -> int:
        """Width of the stream it reads and writes."""
        return self.o_proj.out_features

    def forward(
        self, x: Float[Tensor, "batch length dim"], context: Context | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Read the bank at every position.

        Args:
            x: the (normalised) stream.
            context: not used: every token reads alike.
        """
        query = self.q_proj(x).unflatten(-1, (self.num_heads, -1))
        key, value = self.keys_and_values(x.device)
        # A frozen memory is read in the dtype in which it is kept.
        dtype = query.dtype if self.frozen is None else key.dtype
        read = dense_read(query.to(dtype), key, value, self.dropout if self.training else 0.0)
        return self.o_proj(read.to(query.dtype).flatten(-2))

    def keys_and_values(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Give keys and values of all memory tokens, `[memory, kv_heads, width]`.

        Args:
            device: where they are read.
        """
        if self.frozen is not None:
            return self.frozen.all(self)
        tokens = self.bank().to(device)
        key = self.k_proj(tokens).unflatten(-1, (self.num_kv_heads, -1))
        value = self.v_proj(tokens).unflatten(-1, (self.num_kv_heads, -1))
        return key, value
