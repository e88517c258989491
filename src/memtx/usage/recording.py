"""Recording what is read, from any forward or generation and without changing it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtx.adapters import MemoryAdapter, MemoryLibrary
from memtx.adapters.families import inner_model
from memtx.adapters.reading import real_tokens
from memtx.checks import require, require_positive
from memtx.context import Context
from memtx.memory.router import Routing
from memtx.modes import is_recomputing
from memtx.usage.reads import Passage
from memtx.usage.weights import READERS, reads_of


@final
class Recording:
    """What was read while `record_reads` was open, passage by passage.

    Args:
        tokens_per_chapter: memory tokens of a chapter of a bank that is read densely.
        kept: how many memory tokens are kept for each token.
        watched: memory tokens whose weights are kept for every token.

    Source: memtx's own.

    Example:
        >>> Recording(tokens_per_chapter=4, kept=2, watched=[]).passages
        []
    """

    def __init__(self, *, tokens_per_chapter: int, kept: int, watched: list[int]) -> None:
        self.tokens_per_chapter = tokens_per_chapter
        self.kept = kept
        self.watched = watched
        self.passages: list[Passage] = []
        self._call: _Call | None = None
        self._ids: Tensor | None = None
        self._routing: Routing | None = None

    def note_ids(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Be a forward pre-hook of an embedding: keep the token ids of the call.

        Args:
            module: the embedding.
            inputs: its token ids.
        """
        self._ids = inputs[0]

    def note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Be a forward pre-hook of a base's decoder: keep what is known of the call's tokens.

        Args:
            module: the decoder.
            args: of its call.
            kwargs: of its call.
        """
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if ids is None else ids
        if tokens is None:
            return
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        batch, length = tokens.shape[:2]
        mask = real_tokens(kwargs.get("attention_mask"), known=past + length)
        real = torch.ones(batch, length).bool() if mask is None else mask[:, past:].bool().cpu()
        self._call = _Call(
            ids=None if ids is None else ids.cpu(),
            past=past,
            real=real,
            told=True,
            context=None,
            counts={},
            passage=None,
        )

    def note_routing(self, module: nn.Module, inputs: Any, routing: Routing) -> None:
        """Be a router's forward hook: keep what it gave for the reader it is in.

        Args:
            module: the router.
            inputs: of the router.
            routing: what it gave.
        """
        self._routing = routing

    def note_read(
        self, name: str, reader: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        """Be a reader's forward hook: record what it read.

        Args:
            name: of the reader in the model.
            reader: the reader.
            args: its stream, and perhaps a context.
            kwargs: or these by name.
            output: what it gave, which is left as it is.
        """
        routing, self._routing = self._routing, None
        if is_recomputing():
            return
        x = kwargs["x"] if "x" in kwargs else args[0]
        given = kwargs.get("context", args[1] if len(args) > 1 else None)
        call = self._call_of(given, x)
        calls = call.counts[name] = call.counts.get(name, 0) + 1
        reads = reads_of(
            reader,
            x,
            routing=routing,
            real=call.real,
            tokens_per_chapter=self.tokens_per_chapter,
            kept=self.kept,
            watched=self.watched,
        )
        passage = self._passage_of(call)
        # A layer that stands several times in a model reads several times.
        key = name if calls == 1 else f"{name} (call {calls})"
        before, at = passage.reads.get(key), call.past - passage.start
        passage.reads[key] = reads.shifted(at) if before is None else before.extended(reads, at=at)

    def close(self) -> None:
        """Forget the call that was under way: it holds the model's cache."""
        self._call = self._ids = self._routing = None

    def _call_of(self, context: Context | None, x: Tensor) -> "_Call":
        """Give the call of the model that a read belongs to."""
        call = self._call
        if call is not None and (call.told or (context is not None and call.context is context)):
            return call
        ids, self._ids = self._ids, None
        real = torch.ones(x.shape[:2]).bool()
        if context is not None:
            real = context.own(context.real).cpu()
        self._call = _Call(
            ids=None if ids is None or ids.shape != real.shape else ids.cpu(),
            past=0 if context is None else context.num_before(),
            real=real,
            told=False,
            context=context,
            counts={},
            passage=None,
        )
        return self._call

    def _passage_of(self, call: "_Call") -> Passage:
        """Give the passage that a call goes on with, or a new one."""
        if call.passage is not None:
            return call.passage
        last = self.passages[-1] if self.passages and call.past else None
        if last is None or not _goes_on(last, call):
            last = Passage(ids=call.ids, start=call.past, reads={})
            self.passages.append(last)
        elif last.ids is not None and call.ids is not None:
            last.ids = torch.cat([last.ids[:, : call.past - last.start], call.ids], dim=1)
        call.passage = last
        return last


@dataclass(kw_only=True, eq=False)
class _Call:
    """One call of a model."""

    ids: Tensor | None
    past: int
    real: Tensor
    told: bool
    context: Context | None
    counts: dict[str, int]
    passage: Passage | None


def _goes_on(last: Passage, call: _Call) -> bool:
    """Tell whether the cache of a call holds a passage, whole or cut."""
    if (last.ids is None) != (call.ids is None):
        return False
    real = next(iter(last.reads.values())).real
    return real.shape[0] == call.real.shape[0] and last.start < call.past <= (
        last.start + real.shape[1]
    )


@contextmanager
def record_reads(
    model: nn.Module, *, tokens_per_chapter: int, kept: int, watched: list[int]
) -> Iterator[Recording]:
    """Record what is read in the forwards and generations inside a `with` block.

    Outputs and gradients stay as they are, to the bit: hooks on the readers make queries, keys and
    weights again, beside the forward and without gradients, some tokens at a time. Weights are
    those before dropout. A layer that is recomputed in a backward pass counts once. What a cached
    generation calls step by step becomes one passage; the rows of a batch are its rows, so beams,
    which change places, are better not recorded. Models that are compiled as a whole may leave out
    hooks: record them uncompiled.

    Args:
        model: a `MemoryTransformer`, a `MemoryAdapter`, or any module with memory readers in it.
        tokens_per_chapter: memory tokens of a chapter of a bank that is read densely; a router
            says it of a routed one.
        kept: how many memory tokens to keep for each token of the text, those of largest weight.
        watched: memory tokens whose weights to keep for every token of the text; of a bank that
            does not have them they are 0.

    Raises:
        ValueError: if the model has no memory reader, is a library, or a size is below 1; on
            recording, if a mixing is not memtx's own.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> from memtx import Linear, MemoryCrossAttention, Normal, StandardMemoryBank
        >>> def linear() -> Linear:
        ...     return Linear(in_features=8, out_features=8, bias=False, init=Normal(std=0.3))
        >>> read = MemoryCrossAttention(
        ...     bank=StandardMemoryBank(num_memory_tokens=16, dim=8, init=Normal(std=1.0)),
        ...     q_proj=linear(), k_proj=linear(), v_proj=linear(), o_proj=linear(),
        ...     num_heads=2, num_kv_heads=2, dropout=0.0)
        >>> with record_reads(read, tokens_per_chapter=4, kept=3, watched=[]) as recording:
        ...     _ = read(torch.randn(1, 5, 8))
        >>> reads = recording.passages[0].reads[""]
        >>> reads.chapters.shape, round(float(reads.load.sum()), 5)
        (torch.Size([1, 5, 4]), 1.0)
    """
    require_positive(
        owner="record_reads", sizes={"tokens_per_chapter": tokens_per_chapter, "kept": kept}
    )
    readers = readers_of(model, owner="record_reads")
    largest = max(part.bank.num_memory_tokens for part in readers.values())
    beyond = [each for each in watched if not 0 <= each < largest]
    require(
        ok=not beyond,
        owner="record_reads",
        rule=f"watched must be memory tokens, from 0 to {largest - 1}",
        got={"watched": beyond},
        remedy="watch tokens that exist",
    )
    recording = Recording(tokens_per_chapter=tokens_per_chapter, kept=kept, watched=watched)
    handles = _attach(model, readers=readers, recording=recording)
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()
        recording.close()


def readers_of(model: nn.Module, *, owner: str) -> dict[str, Any]:
    """Give the memory readers of a model by name.

    Args:
        model: the model.
        owner: who asks.

    Raises:
        ValueError: if it has none, or is a library.
    """
    require(
        ok=not isinstance(model, MemoryLibrary),
        owner=owner,
        rule="the model must have one memory for all rows",
        got={"model": type(model).__name__},
        remedy="put the memory into its base by MemoryAdapter",
    )
    found = {name: part for name, part in model.named_modules() if isinstance(part, READERS)}
    require(
        ok=bool(found),
        owner=owner,
        rule="the model must have a memory reader in it",
        got={"model": type(model).__name__},
        remedy="pass a model with MemoryCrossAttention or RoutedMemoryCrossAttention",
    )
    return found


def _attach(
    model: nn.Module, *, readers: dict[str, Any], recording: Recording
) -> list[RemovableHandle]:
    handles = [
        part.register_forward_hook(partial(recording.note_read, name), with_kwargs=True)
        for name, part in readers.items()
    ]
    routers = {id(part.router): part.router for part in readers.values() if hasattr(part, "router")}
    handles += [router.register_forward_hook(recording.note_routing) for router in routers.values()]
    if isinstance(model, MemoryAdapter):
        inner: Any = inner_model(model.base)
        decoder = inner.get_decoder()
        handles.append(decoder.register_forward_pre_hook(recording.note_call, with_kwargs=True))
    elif isinstance(getattr(model, "embedding", None), nn.Module):
        embedding: Any = model.embedding
        handles.append(embedding.register_forward_pre_hook(recording.note_ids))
    return handles
