"""Where tokens stand: which are real, in which document, and where in a cache."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memtx.checks import require

IGNORED = -100


def holds_documents(*, attention_mask: Tensor, position_ids: Tensor) -> bool:
    """Tell whether a row holds more than one document.

    Args:
        attention_mask: 1 at real tokens, 0 at padding, `[batch, length]`.
        position_ids: where they start again, a new document starts; `[batch, length]`.
    """
    real = attention_mask.bool()
    shape = (real.shape[0], real.shape[1])
    found = documents_of(real=real, positions=positions_of(position_ids, shape=shape))
    return bool((found > 0).any())


def own(x: Tensor, *, length: int, place: Tensor | None) -> Tensor:
    """Give of a value of every known token those of the stream.

    Args:
        x: `[batch, known, ...]`.
        length: number of tokens of the stream.
        place: where its one token stands; None, the stream stands last.
    """
    return x[:, x.shape[1] - length :] if place is None else x.index_select(1, place)


def size_of(cache: Any) -> int:
    """Give how many places a cache of fixed size has; 0 where it has no layer that keeps all.

    Args:
        cache: a `Cache` of transformers.
    """
    sizes = [0]  # as a list, which a compiler can follow
    for each in cache.layers:
        sizes += [] if getattr(each, "is_sliding", False) else [getattr(each, "max_cache_len", 0)]
    return max(sizes)


def place_in(cache: Any, *, length: int, device: torch.device) -> Tensor | None:
    """Give where the next token goes in a cache of fixed size that was begun, `[1]`; else None.

    What is not asked of the host need not be waited for, and changes no compiled forward.

    Args:
        cache: a `Cache` of transformers, or None.
        length: number of tokens of the stream: more than one are not placed.
        device: where the tensors live.
    """
    if cache is None or length != 1 or not getattr(cache, "is_compileable", False):
        return None
    begun = any(getattr(each, "is_initialized", False) for each in cache.layers)
    if not begun or not size_of(cache):
        return None
    # The cache counts on in place: what is read later must be what was counted now.
    return torch.as_tensor(cache.get_seq_length(), device=device).clone().reshape(1)


def plain_mask(mask: Tensor, *, known: int) -> Tensor:
    """Give the plain mask `[batch, known]` out of what `generate` makes of it for some caches.

    Args:
        mask: a plain mask, or which tokens each token may attend to, `[batch, 1, length, places]`.
        known: number of known places.
    """
    if mask.ndim == 2:
        return mask
    # What the last token may attend to is what is real; the rest of the cache is empty.
    last = mask[:, 0, -1, :known]
    return last if last.dtype == torch.bool else last == 0


def widened(mask: Tensor, known: int) -> Tensor:
    """Give a mask of the places so far as one of all places.

    Args:
        mask: `[batch, places so far]`.
        known: number of places.
    """
    return F.pad(mask, (0, known - mask.shape[1]))


def layer_for(cache: Any) -> Any:
    """Make a layer of a cache, of its size if that is fixed.

    Args:
        cache: a `Cache` of transformers.
    """
    from transformers.cache_utils import DynamicLayer, StaticLayer

    size = size_of(cache) if getattr(cache, "is_compileable", False) else 0
    return StaticLayer(max_cache_len=size) if size else DynamicLayer()


def mask_of(attention_mask: Tensor, *, shape: tuple[int, int]) -> Tensor:
    """Give a mask as booleans.

    Args:
        attention_mask: 1 at real tokens, 0 at padding.
        shape: the shape it must have.

    Raises:
        ValueError: if it has another.
    """
    require(
        ok=attention_mask.shape == shape,
        owner="Context",
        rule="attention_mask must be [batch, tokens of the cache and of this call]",
        got={"attention_mask": tuple(attention_mask.shape), "wanted": shape},
        remedy="give a 1 for each real token of the cache and of the call, a 0 for padding",
    )
    return attention_mask.bool()


def positions_of(position_ids: Tensor, *, shape: tuple[int, int]) -> Tensor:
    """Give positions of every row.

    Args:
        position_ids: of each row, or of one for all.
        shape: batch and length.

    Raises:
        ValueError: if they do not fit.
    """
    require(
        ok=position_ids.shape in (shape, (1, shape[1])),
        owner="Context",
        rule="position_ids must be [batch, length] or [1, length]",
        got={"position_ids": tuple(position_ids.shape), "wanted": shape},
        remedy="give the position of each token of this call",
    )
    return position_ids.expand(shape)


def check_labels(labels: Tensor, *, shape: tuple[int, int]) -> None:
    """Refuse labels of another shape.

    Args:
        labels: the labels.
        shape: batch and length.

    Raises:
        ValueError: if they do not fit.
    """
    require(
        ok=labels.shape == shape,
        owner="Context",
        rule="labels must be [batch, length]",
        got={"labels": tuple(labels.shape), "wanted": shape},
        remedy=f"give a label for each token of this call, {IGNORED} where there is none",
    )


def packs(cache: Any) -> bool:
    """Tell whether positions that start again start a document; refuse it in a cache.

    Args:
        cache: a `Cache` of transformers, or None.

    Raises:
        ValueError: if there is a cache.
    """
    require(
        ok=cache is None or torch.compiler.is_compiling(),
        owner="Context",
        rule="a row must hold one document where there is a cache",
        got={"position_ids": "starting again within a row", "cache": type(cache).__name__},
        remedy="pass use_cache=False with packed documents",
    )
    return cache is None


def documents_of(*, real: Tensor, positions: Tensor) -> Tensor:
    """Number documents: one starts where a position does not follow the last real token's.

    Args:
        real: whether a token stands there, `[batch, length]`.
        positions: of the tokens.
    """
    at = torch.arange(real.shape[1], device=real.device).expand_as(real)
    last = torch.where(real, at, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], dim=1)
    follows = positions == positions.gather(1, before.clamp(min=0)) + 1
    starts = real & ~follows & (before >= 0)
    return starts.long().cumsum(dim=1)


def index_of(*, real: Tensor, document: Tensor | None) -> Tensor:
    """Count real tokens in each document from 0.

    Args:
        real: whether a token stands there, `[batch, known]`.
        document: number of each token's document; None where a row is one.
    """
    count = real.long().cumsum(dim=1)
    if document is None:
        return (count - 1).clamp(min=0)
    before = count - real.long()
    start = torch.full_like(before, before.shape[1]).scatter_reduce(
        1, document, torch.where(real, before, before.shape[1]), "amin"
    )
    return (count - 1 - start.gather(1, document)).clamp(min=0)


def prompt_of(
    *, labels: Tensor | None, real: Tensor, document: Tensor, starts: bool | Tensor
) -> Tensor:
    """Tell the tokens that stand before the first label of their document.

    Args:
        labels: `[batch, length]`; None, if there are none.
        real: whether a token stands there.
        document: number of each token's document.
        starts: whether the stream is the first of its cache, which is the prompt without labels.
    """
    if labels is None:
        return real & starts
    labelled = (labels != IGNORED) & real
    seen = labelled.long().cumsum(dim=1)
    before = seen - labelled.long()
    at_start = torch.full_like(before, before.shape[1]).scatter_reduce(1, document, before, "amin")
    return real & (seen == at_start.gather(1, document))
