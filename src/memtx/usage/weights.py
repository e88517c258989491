"""How much of each memory token a reader read, found beside its forward."""

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from memtx.checks import require
from memtx.memory import IndependentSoftmax, JointSoftmax
from memtx.memory.cross_attention import MemoryCrossAttention
from memtx.memory.routed_attention import RoutedMemoryCrossAttention
from memtx.memory.router import Routing
from memtx.ops.read_weights import dense_weights, independent_weights, joint_weights
from memtx.ops.segments import Segments
from memtx.usage.reads import Reads

READERS = (MemoryCrossAttention, RoutedMemoryCrossAttention)
MIXINGS = {IndependentSoftmax: independent_weights, JointSoftmax: joint_weights}
# Numbers held at a time beside the forward.
_HELD = 2**23


@final
class Kept:
    """What is kept of the weights of one reader, piece after piece of its tokens.

    Args:
        num_memory_tokens: of the bank.
        tokens_per_chapter: memory tokens of a chapter.
        kept: how many memory tokens are kept for each token.
        watched: memory tokens whose weights are kept for every token.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> kept = Kept(num_memory_tokens=4, tokens_per_chapter=2, kept=1, watched=[3])
        >>> kept.add(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.arange(4).expand(1, 4))
        >>> kept.reads(torch.ones(1, 1).bool()).weights
        tensor([[[0.4000]]])
    """

    def __init__(
        self, *, num_memory_tokens: int, tokens_per_chapter: int, kept: int, watched: list[int]
    ) -> None:
        self.num_memory_tokens = num_memory_tokens
        self.tokens_per_chapter = tokens_per_chapter
        self.kept = kept
        self.watched = watched
        self._pieces: list[list[Tensor]] = []

    def add(self, weights: Tensor, tokens: Tensor) -> None:
        """Take in the weights of some text tokens.

        Args:
            weights: means over heads, `[places, memory tokens that are read]`.
            tokens: which memory tokens these are, of the same shape.
        """
        count = -(-self.num_memory_tokens // self.tokens_per_chapter)
        chapters = weights.new_zeros(weights.shape[0], count)
        chapters.scatter_add_(1, tokens // self.tokens_per_chapter, weights)
        largest = weights.topk(min(self.kept, weights.shape[1]), dim=-1)
        best = tokens.gather(1, largest.indices)
        watched = weights.new_zeros(weights.shape[0], len(self.watched))
        for place, each in enumerate(self.watched):
            watched[:, place] = (weights * (tokens == each)).sum(dim=-1)
        self._pieces.append([each.cpu() for each in (chapters, best, largest.values, watched)])

    def reads(self, real: Tensor) -> Reads:
        """Give all that was taken in, as the reads of a batch; of padding, nothing.

        Args:
            real: whether a token stands there, `[batch, length]`.
        """
        joined = [torch.cat(pieces) for pieces in zip(*self._pieces, strict=True)]
        chapters, tokens, weights, watched = (
            (each * real.reshape(-1, 1)).unflatten(0, real.shape) for each in joined
        )
        return Reads(
            tokens_per_chapter=self.tokens_per_chapter,
            real=real,
            chapters=chapters,
            tokens=tokens,
            weights=weights,
            watched=watched,
        )


@torch.no_grad()
def reads_of(
    reader: Any,
    x: Tensor,
    *,
    routing: Routing | None,
    real: Tensor,
    tokens_per_chapter: int,
    kept: int,
    watched: list[int],
) -> Reads:
    """Give what each token of a stream reads.

    Args:
        reader: the reader.
        x: the normalised stream that it was given.
        routing: what its router chose; None for a dense reader.
        real: whether a token stands there, `[batch, length]` on the CPU.
        tokens_per_chapter: memory tokens of a chapter of a bank that is read densely.
        kept: how many memory tokens are kept for each token.
        watched: memory tokens whose weights are kept for every token.
    """
    size = tokens_per_chapter if routing is None else reader.tokens_per_chapter
    found = Kept(
        num_memory_tokens=reader.bank.num_memory_tokens,
        tokens_per_chapter=size,
        kept=min(kept, reader.bank.num_memory_tokens),
        watched=watched,
    )
    pieces = _dense(reader, x) if routing is None else _routed(reader, x, routing)
    for weights, tokens in pieces:
        found.add(weights, tokens)
    return found.reads(real)


def _dense(reader: Any, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    key, _ = reader.keys_and_values(x.device)
    query = reader.q_proj(x).unflatten(-1, (reader.num_heads, -1)).flatten(0, 1)
    numbers = torch.arange(key.shape[0], device=x.device)
    for piece in query.split(max(1, _HELD // (reader.num_heads * key.shape[0]))):
        weights = dense_weights(piece[None], key)[0].mean(dim=1)
        yield weights, numbers.expand_as(weights)


def _routed(reader: Any, x: Tensor, routing: Routing) -> Iterator[tuple[Tensor, Tensor]]:
    mixing = type(reader.mixing)
    require(
        ok=mixing in MIXINGS,
        owner="record_reads",
        rule=f"the mixing must be one of {', '.join(sorted(each.__name__ for each in MIXINGS))}",
        got={"mixing": mixing.__name__},
        remedy="record a reader whose weights memtx knows",
    )
    size = reader.tokens_per_chapter
    within = torch.arange(size, device=x.device)
    key, _, choice = reader.keys_and_values(routing.chapters)
    query = reader.q_proj(x).unflatten(-1, (reader.num_heads, -1))
    chosen = choice.shape[-1]
    # The keys of each token's own chapters are laid out beside it.
    step = max(1, _HELD // (chosen * size * key.shape[2] * key.shape[3]))
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], step):
            part = slice(start, start + step)
            segments = _part(routing.segments, row=row, part=part)
            picked = (choice[row : row + 1], routing.log_weights[row : row + 1])
            weights = MIXINGS[mixing](query[row : row + 1, part], key, *picked, segments)
            chapters = routing.chapters[row][segments.segment[0]]
            places = (chapters[..., None] * size + within).flatten(1)
            yield weights[0].mean(dim=1).flatten(1), places


def _part(segments: Segments, *, row: int, part: slice) -> Segments:
    """Give some tokens of one row, in the segments they had."""
    return Segments(
        segment=segments.segment[row : row + 1, part],
        real=segments.real[row : row + 1, part],
        count=segments.count,
        width=segments.width,
        regular=False,
    )
