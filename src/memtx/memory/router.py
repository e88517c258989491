"""The router: which chapters of a bank each segment reads, and with what weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memtx.checks import require, require_positive
from memtx.context import Context
from memtx.expression import component
from memtx.interfaces import Projection
from memtx.memory.strategies import NOTHING, RoutingStrategy, Windows
from memtx.ops.segments import Segments


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Routing:
    """What a router chose in one forward.

    Args:
        logits: scores of the routed chapters, in float32.
        chapters: chapters that each segment reads, the shared ones first.
        log_weights: logarithms of their weights, which sum to 1 over the chosen, in float32.
        counted: the segments that count in losses and statistics, each once: those with a real
            token that were not begun in the cache, and of one read in several pieces the first.
        segments: which segment each token belongs to.
        num_shared_chapters: how many of the first chapters are read by all.

    Shapes:
        `logits` `[batch, segments, routed]`, `chapters` and `log_weights`
        `[batch, segments, chosen]`, `counted` `[batch, segments]`.

    Source: memtx's own.

    Example:
        >>> Routing.__name__  # made by ChapterRouter
        'Routing'
    """

    logits: Float[Tensor, "batch segments routed"]
    chapters: Int[Tensor, "batch segments chosen"]
    log_weights: Float[Tensor, "batch segments chosen"]
    counted: Bool[Tensor, "batch segments"]
    segments: Segments
    num_shared_chapters: int

    def probabilities(self) -> Float[Tensor, "counted routed"]:
        """Give the probabilities of the routed chapters in each segment that counts."""
        return torch.softmax(self.logits[self.counted], dim=-1)

    def selections(self) -> Float[Tensor, "routed"]:
        """Give how often each routed chapter was chosen."""
        routed = self.chapters[..., self.num_shared_chapters :] - self.num_shared_chapters
        ones = self.counted[..., None].expand_as(routed).float()
        counts = torch.zeros(self.logits.shape[-1], device=routed.device)
        # Sums of ones are exact in any order.
        return counts.scatter_add(0, routed.flatten(), ones.flatten())

    def decisions(self) -> Float[Tensor, ""]:
        """Give the number of segments that count."""
        return self.counted.float().sum()

    def sum_over_decisions(
        self, values: Float[Tensor, "batch segments *any"]
    ) -> Float[Tensor, "*any"]:
        """Add up a value of each segment over those that count.

        Args:
            values: one for each segment.
        """
        counted = self.counted.view(*self.counted.shape, *[1] * (values.ndim - 2))
        return torch.where(counted, values, 0.0).sum(dim=(0, 1))


@runtime_checkable
class RouterLoss(Protocol):
    """A loss on what a router chose."""

    @property
    def weight(self) -> float:
        """Its factor in the loss of the model."""

    def __call__(self, routing: Routing, reduce: bool) -> Tensor:
        """Give the loss without its weight; `reduce` takes statistics over all processes."""


@final
@component
class ChapterRouter(nn.Module):
    """Chooses chapters for each segment of tokens, as a mixture of experts chooses experts.

    A segment's vector `p` (see the strategies) gives `softmax(scorer(p))` over the routed chapters.
    The `top_k` are scaled to sum to `routed_scale`; the first `num_shared_chapters` chapters are
    always read, with weight 1; then all weights of the segment are divided by their sum.

    With `top_k=1` and no shared chapter the one weight is always 1, and the scorer learns from the
    losses alone.

    Args:
        num_chapters: number of chapters of the bank, the shared ones among them.
        num_shared_chapters: how many of the first chapters every segment reads.
        top_k: how many of the others a segment reads.
        routed_scale: sum of the weights of those, where a shared chapter has weight 1.
        scorer: map from the stream to a score for each routed chapter.
        strategy: cuts the tokens into segments.
        losses: keep the router balanced; weighted, and added to the loss of the model.

    Shapes:
        A stream `[batch, length, dim]` to a `Routing`.

    Raises:
        ValueError: if `top_k` exceeds the routed chapters, `scorer` has another width, or a value
            lies outside its range.

    Source: the mixture-of-chapters source's router; shared experts and the scale are DeepSeek-V3's
    (arXiv 2412.19437). Pooled vectors with equal scores take them in the order of the chapters.

    Example:
        >>> import torch
        >>> from memtx import ChapterRouter, Linear, LoadBalanceLoss, Normal, RollingRouting
        >>> router = ChapterRouter(
        ...     num_chapters=9, num_shared_chapters=1, top_k=2, routed_scale=2.5,
        ...     scorer=Linear(in_features=4, out_features=8, bias=False, init=Normal(std=0.02)),
        ...     strategy=RollingRouting(window=2), losses=[LoadBalanceLoss(weight=0.01)])
        >>> router(torch.ones(1, 6, 4)).chapters.shape
        torch.Size([1, 3, 3])
    """

    def __init__(
        self,
        *,
        num_chapters: int,
        num_shared_chapters: int,
        top_k: int,
        routed_scale: float,
        scorer: Projection,
        strategy: RoutingStrategy,
        losses: list[RouterLoss],
    ) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"num_chapters": num_chapters, "top_k": top_k})
        routed = num_chapters - num_shared_chapters
        self._refuse_unless(
            ok=0 <= num_shared_chapters < num_chapters,
            rule="num_shared_chapters must leave at least one chapter to be routed",
            got={"num_shared_chapters": num_shared_chapters, "num_chapters": num_chapters},
            remedy="share fewer chapters; 0 shares none",
        )
        self._refuse_unless(
            ok=top_k <= routed,
            rule="top_k must not exceed the routed chapters, num_chapters - num_shared_chapters",
            got={"top_k": top_k, "routed chapters": routed},
            remedy="choose fewer, or cut the bank into more chapters",
        )
        self._refuse_unless(
            ok=math.isfinite(routed_scale) and routed_scale > 0.0,
            rule="routed_scale must be positive and finite",
            got={"routed_scale": routed_scale},
            remedy="1.0 gives the routed chapters together the weight of one shared chapter",
        )
        self._refuse_unless(
            ok=scorer.out_features == routed,
            rule="scorer must give one score for each routed chapter, "
            "num_chapters - num_shared_chapters",
            got={"scorer.out_features": scorer.out_features, "routed chapters": routed},
            remedy=f"make scorer.out_features {routed}",
        )
        self.num_chapters = num_chapters
        self.num_shared_chapters = num_shared_chapters
        self.top_k = top_k
        self.routed_scale = routed_scale
        self.scorer = scorer
        self.strategy = strategy
        self.losses = losses

    def _refuse_unless(
        self, *, ok: bool, rule: str, got: Mapping[str, object], remedy: str
    ) -> None:
        require(ok=ok, owner=self, rule=rule, got=got, remedy=remedy)

    @property
    def dim(self) -> int:
        """Width of the stream it chooses from."""
        return self.scorer.in_features

    def forward(
        self, x: Float[Tensor, "batch length dim"], context: Context | None = None
    ) -> Routing:
        """Choose chapters for each segment of the stream.

        Args:
            x: the (normalised) stream.
            context: its tokens; None for whole rows without padding or cache.
        """
        here = Context.plain(x) if context is None else context
        seen, prompt = x, here.prompt
        if self.strategy.remembers:
            keys, values = here.remember(x[:, None], prompt[:, None, :, None].to(x.dtype))
            seen, prompt = keys[:, 0], values[:, 0, :, 0] > 0
            if here.cache is not None and here.place is None and not torch.is_grad_enabled():
                here.memo[self, "remembered"] = seen, prompt
        marks = self.strategy.marks(here, prompt)
        segments = _segments(marks.piece, strategy=self.strategy, context=here)
        vectors = x
        if self.strategy.pools:
            vectors = _pooled(
                seen,
                group=marks.group[:, -seen.shape[1] :],
                source=_of_segments(marks.source, segments=segments, context=here),
                real=here.real[:, -seen.shape[1] :],
            )
        logits = self._logits(vectors)
        chapters, log_weights = self._chosen(logits)
        own = _of_segments(marks.segment, segments=segments, context=here)
        begun = torch.where(here.before(), marks.segment, NOTHING)
        begun = F.pad(begun, (1, 0), value=NOTHING).amax(dim=1, keepdim=True)
        return Routing(
            logits=logits,
            chapters=chapters,
            log_weights=log_weights,
            counted=own > torch.cat([begun, own[:, :-1]], dim=1).cummax(dim=1).values,
            segments=segments,
            num_shared_chapters=self.num_shared_chapters,
        )

    def following(self, context: Context) -> Tensor | None:
        """Give what segments that begin with the next token will read, if that is known by now.

        Only in a generation with a cache, after a forward of its context. The choice itself is made
        when the segment begins: this one may differ from it in the last bits of a mean.

        Args:
            context: the tokens of that forward.

        Returns:
            Chapters `[rows, 1, chosen]` of the rows in which a segment begins; None if in none.
        """
        if (self, "remembered") not in context.memo or not isinstance(self.strategy, Windows):
            return None
        seen, prompt = context.memo[self, "remembered"]
        rows = self.strategy.completed(context, prompt)
        if not rows:
            return None
        with torch.autocast(seen.device.type, enabled=False):
            pooled = seen[rows, -self.strategy.window :].float().mean(dim=1, keepdim=True)
        return self._chosen(self._logits(pooled))[0]

    def _logits(self, vectors: Tensor) -> Tensor:
        # Scores decide by small differences: autocast would round them.
        with torch.autocast(vectors.device.type, enabled=False):
            dtype = next(self.scorer.parameters()).dtype  # type: ignore[attr-defined]
            return self.scorer(vectors.to(dtype)).float()

    def _chosen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Give the chapters of each segment and the logarithms of their weights."""
        if self.strategy.pools:
            # A zero vector scores all chapters alike: a stable order makes the choice the same in
            # every shape. Single tokens are many, and hardly ever zero.
            order = logits.argsort(dim=-1, descending=True, stable=True)
            routed = order[..., : self.top_k]
        else:
            routed = logits.topk(self.top_k, dim=-1).indices
        share = torch.log_softmax(logits.gather(-1, routed), dim=-1) + math.log(self.routed_scale)
        shared = torch.arange(self.num_shared_chapters, device=logits.device)
        shared = shared.expand(*logits.shape[:-1], -1)
        weights = torch.cat([torch.zeros_like(shared, dtype=share.dtype), share], dim=-1)
        chapters = torch.cat([shared, routed + self.num_shared_chapters], dim=-1)
        return chapters, weights - math.log(self.num_shared_chapters + self.routed_scale)


def _segments(piece: Tensor, *, strategy: RoutingStrategy, context: Context) -> Segments:
    """Number the pieces of the stream from 0 in each row."""
    real, piece = context.own(context.real), context.own(piece)
    length, width = context.length, strategy.width(context.length)
    count = strategy.count(length, context.past)
    # Pieces start where the stream starts, unless the cache, the prompt or padding shifts them;
    # what is one token wide never shifts.
    aligned = count == 1 or context.past == 0
    whole = context.all_real and not context.packed and count == -(-length // width)
    if (width == 1 and count == length) or (aligned and whole):
        number = torch.arange(length, device=piece.device).expand_as(piece) // width
        real = torch.ones_like(real)
        return Segments(segment=number, real=real, count=count, width=width, regular=True)
    last = torch.where(real, piece, NOTHING).cummax(dim=1).values
    before = torch.cat([torch.full_like(last[:, :1], NOTHING), last[:, :-1]], dim=1)
    number = ((last != before).cumsum(dim=1) - 1).clamp(min=0)
    if context.packed:
        highest = int(number.max())
        count = highest + 1
        if torch.compiler.is_compiling():  # what a trace must know of a number that it does not
            torch._check(highest >= 0)
            torch._check(highest < length)
            count += 1  # an empty segment, so that there is never one alone, which has other code
    return Segments(segment=number, real=real, count=count, width=width, regular=False)


def _of_segments(marks: Tensor, *, segments: Segments, context: Context) -> Tensor:
    """Give the mark of each segment's tokens, `[batch, segments]`; `NOTHING` if it has none."""
    own = torch.where(context.own(context.real), context.own(marks), NOTHING)
    empty = torch.full((own.shape[0], segments.count), NOTHING, device=own.device)
    return empty.scatter_reduce(1, segments.segment, own, "amax")


def _pooled(seen: Tensor, *, group: Tensor, source: Tensor, real: Tensor) -> Tensor:
    """Give the mean of each segment's source in float32, `[batch, segments, dim]`."""
    members = (group[:, None, :] == source[:, :, None]) & (real & (group > NOTHING))[:, None, :]
    with torch.autocast(seen.device.type, enabled=False):
        total = members.float() @ seen.float()
    return total / members.sum(dim=-1, keepdim=True).clamp(min=1)
