"""What the memory of an adapter knows of the forward that is under way."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtx.adapters.families import inner_model
from memtx.adapters.threads import Here
from memtx.checks import require
from memtx.context import IGNORED, Context, Slots
from memtx.losses import router_losses
from memtx.modes import is_recomputing
from memtx.places import plain_mask

# What a checkpoint enters in the forward, and in the recomputation.
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


@final
class Reading:
    """Makes a context at the start of each forward of a base, for the insertions in it.

    The base's own forward is left as it is: hooks see what it is called with. A forward that ends
    leaves its context here until the next one of its thread starts.

    Args:
        base: the pretrained model.
        wanted: whether an insertion asks for a context; if none does, no forward is touched.
        first_slot: number of the first layer of a cache that the insertions may use.

    Source: memtx's own.

    Example:
        >>> Reading.__name__  # made by MemoryAdapter
        'Reading'
    """

    def __init__(self, *, base: nn.Module, wanted: bool, first_slot: int) -> None:
        self.base = base
        self.wanted = wanted
        self.first_slot = first_slot
        self._here = Here()

    @property
    def context(self) -> Context | None:
        """The context of this thread's forward, under way or last; None if there was none."""
        context: Context | None = self._here.get("context", None)
        return context

    @property
    def is_on(self) -> bool:
        """Whether memories are read in this thread."""
        return bool(self._here.get("is_on", True))

    @property
    def replays(self) -> bool:
        """Whether a forward is being repeated in this thread, and it is known which."""
        return bool(self._here.get("replays", False))

    def off(self) -> AbstractContextManager[None]:
        """Let no memory be read in this thread inside a `with` block."""
        return self._here.keeping("is_on", False, default=True)

    def attach(self) -> list[RemovableHandle]:
        """Hook the base and give the handles that take the hooks out."""
        if not self.wanted:
            return []
        model: Any = inner_model(self.base)
        decoder = model.get_decoder()
        return [
            model.register_forward_pre_hook(self._note_labels, with_kwargs=True),
            decoder.register_forward_pre_hook(self._start, with_kwargs=True),
        ]

    def now(self) -> Context | None:
        """Give the context of the forward that is under way, or that is being recomputed.

        Raises:
            RuntimeError: in a recomputation that does not know which forward it repeats.
        """
        recomputing = self.wanted and not self.replays and is_recomputing()
        if recomputing:
            raise RuntimeError(
                "MemoryAdapter: a recomputation must know which forward it repeats, got gradient "
                "checkpointing that was not switched on by the adapter; call the adapter's "
                "gradient_checkpointing_enable() instead of the base's."
            )
        return self.context

    def check_checkpointing(self, *, use_reentrant: bool) -> None:
        """Refuse checkpoints that cannot hold what routers need.

        Args:
            use_reentrant: the kind of checkpoint.

        Raises:
            ValueError: if an insertion asks for a context and the kind is the one with reentry.
        """
        require(
            ok=not (self.wanted and use_reentrant),
            owner="MemoryAdapter",
            rule="gradient checkpointing must be without reentry where a memory is routed: with it "
            "a forward keeps no gradient for the losses of routers",
            got={"use_reentrant": use_reentrant},
            remedy="leave use_reentrant out, or pass False",
        )

    def replaying(self, inner: Callable[[], Contexts]) -> Callable[[], Contexts]:
        """Give a checkpoint's `context_fn` that recomputes with the context of the forward.

        Between a forward and its backward pass there may have been others, and the backward pass
        may run in another thread.

        Args:
            inner: another `context_fn`, used as well.
        """
        # Of a method, so that a deep copy of the adapter recomputes with its own.
        return partial(self._contexts, inner)

    def _contexts(self, inner: Callable[[], Contexts]) -> Contexts:
        first, again = inner()
        return first, self._replay(self.context, self.is_on, again)

    @contextmanager
    def _replay(
        self, context: Context | None, is_on: bool, inner: AbstractContextManager[Any]
    ) -> Iterator[None]:
        if context is not None:
            # What was chosen is noted already.
            slots = Slots(first=self.first_slot, given=0)
            context = replace(context, routings=[], slots=slots, memo={})
        with (
            self._here.keeping("context", context, default=None),
            self._here.keeping("is_on", is_on, default=True),
            self._here.keeping("replays", True, default=False),
            inner,
        ):
            yield

    @contextmanager
    def told(self, labels: Tensor | None, attention_mask: Tensor | None) -> Iterator[None]:
        """Tell the forward inside a `with` block where prompts end, and which tokens are real.

        Args:
            labels: -100 where none, `[batch, length]`; None, if there are none.
            attention_mask: 1 at real tokens, 0 at padding, whatever mask the base gets; None, the
                base's mask tells.
        """
        with (
            self._here.keeping("labels", labels, default=None),
            self._here.keeping("mask", attention_mask, default=None),
        ):
            yield

    def router_losses(self) -> dict[str, tuple[Tensor, float]]:
        """Give the router losses of the last forward by name, each with its weight."""
        return {} if self.context is None else router_losses(self.context)

    def with_router_losses(self, output: Any, *, labels: Tensor | None, items: Any) -> Any:
        """Give an output of the base with the weighted losses of the routers in its loss.

        Args:
            output: of a forward; a tuple, if the base was asked for one.
            labels: those of the forward; None, it made no loss.
            items: number of labels over which a loop adds up the losses of several forwards, of
                which this is one; None, the loss is a mean.
        """
        losses = {} if labels is None else self.router_losses()
        if labels is None or not losses:
            return output
        share = 1.0 if items is None else (labels[..., 1:] != IGNORED).sum() / items
        is_plain = isinstance(output, tuple)
        loss = output[0] if is_plain else output.loss
        for value, weight in losses.values():
            loss = loss + share * weight * value
        if is_plain:
            return (loss, *output[1:])
        output.loss = loss
        return output

    def _note_labels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._here.put("labels", kwargs.get("labels"))

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if ids is None else ids
        if tokens is None:
            return None  # the base itself will say what is missing
        cache = kwargs.get("past_key_values")
        changed = None
        if cache is None and self._wants_cache(module, kwargs):
            from transformers import DynamicCache

            cache = DynamicCache(config=module.config)  # type: ignore[arg-type]
            changed = (args, {**kwargs, "past_key_values": cache})
        told = self._here.get("mask", None)
        mask = kwargs.get("attention_mask") if told is None else told
        context = Context.of(
            batch=tokens.shape[0],
            length=tokens.shape[1],
            device=tokens.device,
            attention_mask=_whole(mask),
            position_ids=kwargs.get("position_ids"),
            labels=self._here.get("labels", None),
            cache=cache,
            first_slot=self.first_slot,
        )
        self._here.put("context", context)
        self._here.put("labels", None)
        return changed

    def _wants_cache(self, module: Any, kwargs: dict[str, Any]) -> bool:
        """Tell whether the base is going to make a cache itself."""
        asked = kwargs.get("use_cache")
        return bool(module.config.use_cache if asked is None else asked) and not module.training


def _whole(mask: Any) -> Tensor | None:
    """Give the mask that no window of attention narrows, out of those of a call of a base."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    return mask if isinstance(mask, Tensor) else None


def real_tokens(mask: Any, *, known: int) -> Tensor | None:
    """Give the plain mask `[batch, known]` out of what `generate` makes of it for some caches.

    Args:
        mask: the mask of a call of a base, in any of its forms.
        known: how many places it is about: those of the cache and of the call.
    """
    whole = _whole(mask)
    return None if whole is None else plain_mask(whole, known=known)
