"""What a forward knows of its tokens beyond the residual stream."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from memtx.checks import require
from memtx.places import (
    IGNORED,
    check_labels,
    documents_of,
    holds_documents,
    index_of,
    layer_for,
    mask_of,
    own,
    packs,
    place_in,
    plain_mask,
    positions_of,
    prompt_of,
    size_of,
    widened,
)

__all__ = ["IGNORED", "Context", "Slots", "holds_documents"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """The tokens of one forward: which are real, which belong together, and what came before.

    Made once for a forward by the model (`Context.of`) and passed down to every sub-layer. The
    axis `known` holds the tokens of the cache and then those of the stream; `length` is the
    stream's alone. Without a cache the two are equal. In a cache of fixed size, once begun, `known`
    is all of its places, and the stream is one token, at `place`.

    Args:
        real: at every known place, whether a token stands there (not padding).
        document: number of the document a token belongs to, from 0 in each row.
        index: number of the token in its document, counted over real tokens from 0.
        positions: position of each token of the stream, for positional encodings.
        prompt: whether a token of the stream belongs to the prompt: it stands before the first
            label of its document, or, without labels, before generation starts.
        all_real: whether it is known that no place is padding.
        packed: whether a row holds more than one document.
        cache: a `Cache` of transformers that is carried from call to call; None without one.
        place: where the one token of the stream stands among the known places, `[1]`; None, the
            stream stands last.
        slots: the numbers of the cache's layers, given out in the order of the calls.
        routings: what the routers of this forward chose, in the order of the calls.
        memo: values that several sub-layers share, such as the rotary angles.

    Shapes:
        `real`, `document` and `index` are `[batch, known]`, `positions` and `prompt`
        `[batch, length]`.

    Source: memtx's own. Packed documents are told from `position_ids` as transformers tells them.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[0, 1, 1]])
        >>> context = Context.of(
        ...     batch=1, length=3, device=mask.device, attention_mask=mask, position_ids=None,
        ...     labels=None, cache=None, first_slot=0)
        >>> context.index.tolist()
        [[0, 0, 1]]
    """

    real: Bool[Tensor, "batch known"]
    document: Int[Tensor, "batch known"]
    index: Int[Tensor, "batch known"]
    positions: Int[Tensor, "batch length"]
    prompt: Bool[Tensor, "batch length"]
    all_real: bool
    packed: bool
    cache: Any
    place: Tensor | None
    slots: "Slots"
    routings: list[Any]
    memo: dict[Any, Any]

    @classmethod
    def of(
        cls,
        *,
        batch: int,
        length: int,
        device: torch.device,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        labels: Tensor | None,
        cache: Any,
        first_slot: int,
    ) -> "Context":
        """Make the context of one call of a causal language model.

        Args:
            batch: number of rows.
            length: number of tokens of the stream.
            device: where the tensors live.
            attention_mask: 1 at real tokens, 0 at padding, `[batch, known]`; None, all are real.
            position_ids: `[batch, length]`; None, tokens are counted. Without a cache a real token
                whose position does not follow that of the one before starts a new document.
            labels: `[batch, length]`, -100 where none; None, if there are none.
            cache: a `Cache` of transformers, or None.
            first_slot: number of the first layer of the cache that sub-layers may use.

        Raises:
            ValueError: if a shape does not fit, or the cache holds documents side by side.
        """
        place = place_in(cache, length=length, device=device)
        past = 0 if cache is None else int(cache.get_seq_length()) if place is None else None
        known = size_of(cache) if past is None else past + length
        real = torch.ones(batch, known, dtype=torch.bool, device=device)
        all_real = attention_mask is None and place is None
        if attention_mask is not None:
            mask = plain_mask(attention_mask, known=known)
            real = mask_of(mask if place is None else widened(mask, known), shape=(batch, known))
        if place is not None:
            real = real & (torch.arange(known, device=device) <= place)
        elif attention_mask is not None:
            # Asked once for a forward, it spares every layer a mask; a trace cannot ask.
            all_real = not torch.compiler.is_compiling() and bool(real.all())
        document = torch.zeros_like(real, dtype=torch.long)
        packed = False
        if position_ids is not None:
            position_ids = positions_of(position_ids, shape=(batch, length))
            if length > 1:
                found = documents_of(real=real[:, -length:], positions=position_ids)
                packed = torch.compiler.is_compiling() or bool((found > 0).any())
                packed = packed and packs(cache)
                document = found if packed else document
        index = index_of(real=real, document=document if packed else None)
        if labels is not None:
            check_labels(labels, shape=(batch, length))
        if position_ids is None:
            position_ids = own(index, length=length, place=place)
        return cls(
            real=real,
            document=document,
            index=index,
            positions=position_ids,
            prompt=prompt_of(
                labels=labels,
                real=own(real, length=length, place=place),
                document=own(document, length=length, place=place),
                starts=past == 0 if place is None else place == 0,
            ),
            all_real=all_real,
            packed=packed,
            cache=cache,
            place=place,
            slots=Slots(first=first_slot, given=0),
            routings=[],
            memo={},
        )

    @classmethod
    def plain(cls, x: Tensor) -> "Context":
        """Make the context of a stream of which nothing is known: whole rows without padding.

        Args:
            x: the stream `[batch, length, dim]`.
        """
        return cls.of(
            batch=x.shape[0],
            length=x.shape[1],
            device=x.device,
            attention_mask=None,
            position_ids=None,
            labels=None,
            cache=None,
            first_slot=0,
        )

    @property
    def known(self) -> int:
        """Number of known places: those of the cache and of the stream."""
        return self.real.shape[1]

    @property
    def length(self) -> int:
        """Number of tokens of the stream."""
        return self.prompt.shape[1]

    @property
    def past(self) -> int:
        """Number of known places that are not the stream's."""
        return self.known - self.length

    def own(self, x: Tensor) -> Tensor:
        """Give of a value of every known token those of the stream, `[batch, length, ...]`.

        Args:
            x: `[batch, known, ...]`.
        """
        return own(x, length=self.length, place=self.place)

    def num_before(self) -> int:
        """Count the places that were filled before this call; asks the device where it must."""
        return self.past if self.place is None else int(self.place)

    def before(self) -> Bool[Tensor, "batch known"]:
        """Tell which known tokens are real and stood there before this call."""
        if self.place is not None:
            return self.real.index_fill(1, self.place, False)
        at = torch.arange(self.known, device=self.real.device)
        return self.real & (at < self.past)

    def attention_mask(self) -> Bool[Tensor, "batch 1 length known"] | None:
        """Give which known token each token of the stream may attend to; None if it is causal.

        A token attends to real tokens of its own document that do not come after it. Padding
        attends to itself, so that no row of the mask is empty.
        """
        if self.all_real and not self.packed and self.past == 0 and self.place is None:
            return None
        if "attention_mask" not in self.memo:
            at = torch.arange(self.known, device=self.real.device)
            query = (at[self.past :] if self.place is None else self.place)[:, None]
            document = self.document
            allowed = (at <= query) & self.real[:, None, :]
            allowed &= self.own(document)[:, :, None] == document[:, None, :]
            self.memo["attention_mask"] = (allowed | (at == query))[:, None]
        mask: Tensor = self.memo["attention_mask"]
        return mask

    def remember(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add to the next layer of the cache and give all that it holds.

        The layers are transformers' own, so what is kept here follows beams, repetitions and
        cuts of the cache. Every sub-layer that remembers must call this once in every forward.

        Args:
            keys: `[batch, heads, length, width]`.
            values: the same, with a width of its own.

        Raises:
            ValueError: if the cache was filled by a forward that did not remember, or is of fixed
                size and was begun with several tokens to add.
        """
        if self.cache is None:
            return keys, values
        slot, layers = self.slots.take(), self.cache.layers
        if len(layers) <= slot:
            layers += [layer_for(self.cache) for _ in range(slot + 1 - len(layers))]
        if hasattr(layers[slot], "max_cache_len"):
            return self._remember_in_place(keys, values, slot=slot)
        keys, values = self.cache.update(keys, values, slot)
        self._require_held(keys.shape[-2])
        return keys, values

    def _remember_in_place(
        self, keys: Tensor, values: Tensor, *, slot: int
    ) -> tuple[Tensor, Tensor]:
        """Add to a layer of fixed size: the first call reads what it gives, others all places."""
        begun = self.place is not None
        require(
            ok=begun or self.past == 0,
            owner="Context",
            rule="a cache of fixed size must go on token by token",
            got={"cache": type(self.cache).__name__, "tokens of the call": self.length},
            remedy="give one token at a time, or use a DynamicCache, which is what generate makes "
            "unless told otherwise",
        )
        if begun and not self.cache.layers[slot].is_initialized:
            self._require_held(0)
        held: tuple[Tensor, Tensor] = self.cache.update(keys, values, slot)
        return held if begun else (keys, values)

    def _require_held(self, found: int) -> None:
        held = self.past + self.length
        require(
            ok=found >= held,
            owner="Context",
            rule="the cache must have been filled with the memory on, from its first token",
            got={"tokens in the cache": held, "remembered by the memory": found},
            remedy="start with an empty cache, and switch the memory on before the first call",
        )

    def count_in_cache(self, x: Tensor) -> None:
        """Let the cache count the tokens of a model in which no sub-layer remembers anything.

        Args:
            x: the stream `[batch, length, dim]`.
        """
        if self.cache is not None and not self.slots.given:
            one = x[:, None, :, :1].detach()
            self.remember(one, one)


@final
@dataclass(kw_only=True)
class Slots:
    """Gives out numbers of cache layers in the order of the calls.

    Args:
        first: the first number to give.
        given: how many were given.

    Source: memtx's own: a block that stands twice in a model needs two layers.

    Example:
        >>> slots = Slots(first=3, given=0)
        >>> slots.take(), slots.take()
        (3, 4)
    """

    first: int
    given: int

    def take(self) -> int:
        """Give the next number."""
        self.given += 1
        return self.first + self.given - 1
