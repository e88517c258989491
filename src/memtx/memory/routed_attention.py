"""Routed reading: every segment reads the chapters that a router chose for it."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import guard_or_false
from torch.utils.checkpoint import checkpoint

from memtx.checks import require
from memtx.context import Context
from memtx.expression import component
from memtx.interfaces import DistantBank, MemoryBank, Projection
from memtx.memory.frozen import FrozenReads
from memtx.memory.mixing import Mixing
from memtx.memory.owned import is_distant, rows_for
from memtx.memory.router import ChapterRouter, Routing
from memtx.memory.sparse import SparseRows
from memtx.ops.segments import Segments
from memtx.projections import check_heads, check_source

# Elements of keys and values, laid side by side by segment, from which on a read keeps none of them
# for the backward pass: 256 MiB in bfloat16. A read of the 371M stack by sequence has 0.8 as many.
MANY_LAID = 2**27
FEW_TOKENS = 16_384  # of a memory


@final
@component
class RoutedMemoryCrossAttention(nn.Module):
    """Cross-attention from the stream to a few chapters of a bank, chosen by a router.

    The bank is cut into the router's number of chapters of equal size, in order. Only the memory
    tokens of chapters that some segment of the batch reads are looked up and projected, each
    once. Where segments are many, keys and values are not kept for the backward pass but made
    again there, with the read.

    Args:
        bank: the memory tokens; pass one instance to several readers to share it.
        router: chooses the chapters.
        mixing: makes one read of several chapters.
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
        ValueError: if bank, router, projections, heads or widths do not meet.

    Source: the memory read of the mixture-of-chapters source, with the weights of the chapters in
    the read, so that it gives the router a gradient.

    Example:
        >>> import torch
        >>> from memtx import *
        >>> def linear(width: int) -> Linear:
        ...     return Linear(in_features=8, out_features=width, bias=False, init=Normal(std=0.3))
        >>> read = RoutedMemoryCrossAttention(
        ...     bank=StandardMemoryBank(num_memory_tokens=32, dim=8, init=Normal(std=1.0)),
        ...     router=ChapterRouter(
        ...         num_chapters=8, num_shared_chapters=0, top_k=2, routed_scale=1.0,
        ...         scorer=linear(8), strategy=TokenRouting(), losses=[]),
        ...     mixing=JointSoftmax(), q_proj=linear(8), k_proj=linear(8), v_proj=linear(8),
        ...     o_proj=linear(8), num_heads=2, num_kv_heads=2, dropout=0.0)
        >>> read(torch.ones(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        *,
        bank: MemoryBank,
        router: ChapterRouter,
        mixing: Mixing,
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
        require(
            ok=bank.num_memory_tokens % router.num_chapters == 0,
            owner=self,
            rule="the memory tokens must divide into chapters of equal size",
            got={
                "bank.num_memory_tokens": bank.num_memory_tokens,
                "router.num_chapters": router.num_chapters,
            },
            remedy="make num_memory_tokens a multiple of num_chapters",
        )
        require(
            ok=router.dim == q_proj.in_features,
            owner=self,
            rule="the router's scorer must read the width of the stream",
            got={
                "router.scorer.in_features": router.dim,
                "q_proj.in_features": q_proj.in_features,
            },
            remedy="make both the width of the stream",
        )
        self.bank = bank
        self.router = router
        self.mixing = mixing
        self.q_proj = q_proj
        self.k_proj = k_proj
        self.v_proj = v_proj
        self.o_proj = o_proj
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.dropout = dropout
        # What `memtx.generate.freeze_for_inference` puts here; never saved.
        self.frozen: FrozenReads | None = None
        # What `memtx.train.sparse_bank_gradients` sets.
        self.sparse_rows: SparseRows | None = None

    @property
    def dim(self) -> int:
        """Width of the stream it reads and writes."""
        return self.o_proj.out_features

    @property
    def tokens_per_chapter(self) -> int:
        """Number of memory tokens of a chapter."""
        return self.bank.num_memory_tokens // self.router.num_chapters

    def forward(
        self, x: Float[Tensor, "batch length dim"], context: Context | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Read, at every position, the chapters chosen for its segment.

        Args:
            x: the (normalised) stream.
            context: its tokens; None for whole rows without padding or cache.
        """
        here = Context.plain(x) if context is None else context
        routing = self.router(x, here)
        here.routings.append((self.router, routing))
        query = self.q_proj(x).unflatten(-1, (self.num_heads, -1))
        given = (query, routing.chapters, routing.log_weights, routing.segments)
        if self._recomputes(routing):
            read = checkpoint(
                self._read, *given, use_reentrant=False, preserve_rng_state=self.dropout > 0.0
            )
        else:
            read = self._read(*given)
        if self.frozen is None and is_distant(self.bank) and not torch.is_grad_enabled():
            self._fetch_ahead(self.bank, here)
        return self.o_proj(read.flatten(-2))

    def _recomputes(self, routing: Routing) -> bool:
        """Tell whether keys and values are made again in the backward pass instead of kept."""
        laid = routing.chapters.numel() * self.tokens_per_chapter
        laid *= self.k_proj.out_features + self.v_proj.out_features
        # Tokens that choose for themselves are sorted, and lay nothing side by side.
        if routing.segments.width == 1 or self.frozen is not None or not torch.is_grad_enabled():
            return False
        # How many segments packed rows have is not known while a trace is made of them.
        return guard_or_false(laid >= MANY_LAID)

    def _read(
        self, query: Tensor, chapters: Tensor, log_weights: Tensor, segments: Segments
    ) -> Tensor:
        key, value, choice = self.keys_and_values(chapters)
        # A frozen memory is read in the dtype in which it is kept.
        dtype = query.dtype if self.frozen is None else key.dtype
        read: Tensor = self.mixing(
            query=query.to(dtype),
            key=key,
            value=value,
            choice=choice,
            log_weight=log_weights,
            segments=segments,
            dropout=self.dropout if self.training else 0.0,
        )
        return read.to(query.dtype)

    def _fetch_ahead(self, bank: DistantBank, context: Context) -> None:
        """Let a bank fetch what segments that begin with the next token will read."""
        chapters = None if torch.compiler.is_compiling() else self.router.following(context)
        if chapters is not None:
            size = self.tokens_per_chapter
            within = torch.arange(size, device=chapters.device)
            bank.fetch_ahead(chapters.flatten()[:, None] * size + within)

    def keys_and_values(self, chapters: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give keys and values by chapter, and each choice's place among these chapters.

        Without places there is one chapter for each choice.

        Args:
            chapters: the chapters that segments read, in any shape.
        """
        size = self.tokens_per_chapter
        if self.frozen is not None:
            return self.frozen.chapters(self, chapters, size, self._distinct)
        distinct, choice = self._distinct(chapters)
        tokens = self._tokens(distinct, device=chapters.device)
        key = self.k_proj(tokens).unflatten(-1, (self.num_kv_heads, -1))
        value = self.v_proj(tokens).unflatten(-1, (self.num_kv_heads, -1))
        return key, value, choice

    def _tokens(self, chapters: Tensor | None, *, device: torch.device) -> Tensor:
        """Give the memory tokens of chapters, or of all."""
        size = self.tokens_per_chapter
        if chapters is None and self.sparse_rows is None:
            tokens: Tensor = self.bank().to(device).unflatten(0, (-1, size))
            return tokens
        if chapters is None:
            chapters = torch.arange(self.router.num_chapters, device=device)
        if is_distant(self.bank) and self.sparse_rows is None:
            return self.bank.chapters(chapters, size)
        rows = chapters[:, None] * size + torch.arange(size, device=device)
        if self.sparse_rows is not None:
            return self.sparse_rows.look_up(rows)
        return rows_for(self.bank, rows)

    def _distinct(self, chapters: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Give the chapters that are read and each choice's place among them.

        None instead of chapters is all of them; instead of places, one chapter for each choice.
        """
        # To project a few chapters twice takes less than to wait for what a GPU finds equal.
        few = chapters.is_cuda and chapters.numel() * self.tokens_per_chapter <= FEW_TOKENS
        if is_distant(self.bank) or not (torch.compiler.is_compiling() or few):
            distinct, choice = chapters.unique(return_inverse=True)
            return distinct, choice
        # How many there are must be known: all choices, or the whole bank if it is less.
        if guard_or_false(chapters.numel() >= self.router.num_chapters):
            return None, chapters
        return chapters.flatten(), None
