"""What the tokens of texts read in a memory, and what follows from it."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memtx.checks import require


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reads:
    """What each token of a text read at one reader. Weights are means over the reader's heads.

    The weights of a real token sum to 1 over all memory tokens, and so over all chapters. Where
    chapters are routed, the router's weight of a chapter is in them: they are what was read, not
    what was chosen. Padding has weights of 0.

    Args:
        tokens_per_chapter: memory tokens of a chapter; the last chapter may have fewer.
        real: whether a token stands there (not padding).
        chapters: weight of each chapter of the bank.
        tokens: the memory tokens of largest weight, the largest first.
        weights: their weights.
        watched: weights of the memory tokens that were asked for.

    Shapes:
        `real` `[batch, length]`, `chapters` `[batch, length, chapters]`, `tokens` and `weights`
        `[batch, length, kept]`, `watched` `[batch, length, watched]`; all on the CPU.

    Source: attention maps, taken of a memory; memtx's own.

    Example:
        >>> import torch
        >>> nothing = torch.zeros(1, 2, 0)
        >>> reads = Reads(
        ...     tokens_per_chapter=4, real=torch.tensor([[True, True]]), tokens=nothing.long(),
        ...     weights=nothing, watched=nothing,
        ...     chapters=torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]]))
        >>> reads.load.tolist(), reads.dead(at_least=0.01)
        ([0.75, 0.25, 0.0], [2])
    """

    tokens_per_chapter: int
    real: Bool[Tensor, "batch length"]
    chapters: Float[Tensor, "batch length chapters"]
    tokens: Int[Tensor, "batch length kept"]
    weights: Float[Tensor, "batch length kept"]
    watched: Float[Tensor, "batch length watched"]

    @property
    def num_chapters(self) -> int:
        """Number of chapters of the bank."""
        return self.chapters.shape[-1]

    @property
    def load(self) -> Float[Tensor, " chapters"]:
        """The share of all reading that each chapter got; zeros where nothing was read."""
        return self._real_chapters().sum(dim=0) / self.real.sum().clamp(min=1)

    @property
    def entropy_of_load(self) -> float:
        """Entropy, in nats, of the load: `log` of the chapters where all are read alike."""
        return float(torch.special.entr(self.load).sum())

    @property
    def mean_entropy(self) -> float:
        """Mean entropy, in nats, of a token's reading over chapters: 0 where each reads one."""
        each = torch.special.entr(self._real_chapters()).sum(dim=-1)
        return float(each.sum() / self.real.sum().clamp(min=1))

    def dead(self, *, at_least: float) -> list[int]:
        """Give the chapters that no token read with a weight of `at_least`.

        Args:
            at_least: the weight; of a dense reader every weight is above 0.

        Raises:
            ValueError: if it is not in (0, 1].
        """
        require(
            ok=0.0 < at_least <= 1.0,
            owner=self,
            rule="at_least must lie in (0, 1]",
            got={"at_least": at_least},
            remedy="pass a weight such as 0.01",
        )
        read = (self.chapters[self.real] >= at_least).any(dim=0)
        return [int(chapter) for chapter in (~read).nonzero().flatten()]

    def row(self, index: int) -> "Reads":
        """Give what one row of the batch read.

        Args:
            index: its number.
        """
        return self._with([each[index : index + 1] for each in self._tensors()])

    def extended(self, more: "Reads", *, at: int) -> "Reads":
        """Give these reads with more tokens from a place on; a gap before it counts as padding.

        Args:
            more: what the further tokens read.
            at: the place of the first; what was there from it on is dropped.
        """
        before = [_resized(each, at) for each in self._tensors()]
        return self._with([torch.cat(p, 1) for p in zip(before, more._tensors(), strict=True)])

    def shifted(self, by: int) -> "Reads":
        """Give these reads behind as many places of padding.

        Args:
            by: how many.
        """
        empty = self._with([each[:, :0] for each in self._tensors()])
        return empty.extended(self, at=by)

    def _tensors(self) -> list[Tensor]:
        return [self.real, self.chapters, self.tokens, self.weights, self.watched]

    def _with(self, tensors: list[Tensor]) -> "Reads":
        real, chapters, tokens, weights, watched = tensors
        return Reads(
            tokens_per_chapter=self.tokens_per_chapter,
            real=real,
            chapters=chapters,
            tokens=tokens,
            weights=weights,
            watched=watched,
        )

    def _real_chapters(self) -> Tensor:
        return self.chapters[self.real].double()


def _resized(x: Tensor, length: int) -> Tensor:
    """Cut the second axis to a length, or fill it up with zeros."""
    return F.pad(x[:, :length], [0, 0] * (x.ndim - 2) + [0, max(0, length - x.shape[1])])


@final
@dataclass(kw_only=True, eq=False)
class Passage:
    """Tokens that were read one after another: those of a forward, or of a cached generation.

    Args:
        ids: the token ids, `[batch, length]` on the CPU; None where the model was given vectors.
        start: place of the first one: above 0 where the cache was filled before recording.
        reads: what was read, by the name of the reader in the model.

    Source: memtx's own.

    Example:
        >>> Passage(ids=None, start=0, reads={}).reads
        {}
    """

    ids: Int[Tensor, "batch length"] | None
    start: int
    reads: dict[str, Reads]


def overlap(one: Reads, other: Reads) -> float:
    """Give how much two texts read the same chapters: 1 for equal loads, 0 for none in common.

    Args:
        one: what one text read at a reader.
        other: what another text read at the same reader.

    Raises:
        ValueError: if the bank has another number of chapters.
    """
    require(
        ok=one.num_chapters == other.num_chapters,
        owner="overlap",
        rule="both texts must have read the same bank",
        got={"chapters": [one.num_chapters, other.num_chapters]},
        remedy="compare reads of one reader",
    )
    return float(torch.minimum(one.load, other.load).sum())
