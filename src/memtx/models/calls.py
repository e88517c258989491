"""What a call of any whole model has in common: tokens in, scores and loss out."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from memtx.checks import require
from memtx.context import IGNORED, Context
from memtx.losses import router_losses
from memtx.ops.heads import Head
from memtx.ops.linear_losses import chunked_cross_entropy

# Tokens whose logits are held at a time while the loss is made.
_LOSS_CHUNK = 4096


@runtime_checkable
class WholeModel(Protocol):
    """An embedding, what stands between it and the head, and the head."""

    embedding: Any
    head: Any

    def hidden_of(self, stream: Tensor, context: Context) -> Tensor:
        """Run all between embedding and head."""

    @property
    def output_head(self) -> Head:
        """The head, as the chunked losses take it."""


def stream_of(
    model: WholeModel, *, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    """Give the stream as it enters the layers, in autocast's dtype where that is on.

    Args:
        model: the model, which embeds tokens.
        input_ids: token ids; None where the stream is given.
        inputs_embeds: the stream; None where it is made from token ids.

    Raises:
        ValueError: if both or neither are given.
    """
    given = {"input_ids": input_ids is not None, "inputs_embeds": inputs_embeds is not None}
    require(
        ok=sum(given.values()) == 1,
        owner=model,
        rule="either input_ids or inputs_embeds must be given",
        got=given,
        remedy="pass one of them",
    )
    stream: Tensor = model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
    kind = stream.device.type
    # Sub-layers answer in autocast's dtype: a wider stream would double what is kept of it.
    mixed = kind != "meta" and torch.is_autocast_enabled(kind)
    return stream.to(torch.get_autocast_dtype(kind)) if mixed else stream


def context_of(
    stream: Tensor,
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    cache: Any,
) -> Context:
    """Give what is known of the tokens of a call.

    Args:
        stream: the embedded tokens `[batch, length, dim]`.
        attention_mask: 1 at real tokens, 0 at padding; None, all are real.
        position_ids: positions; None, real tokens are counted.
        labels: targets, which tell where the prompt ends; None, if there are none.
        cache: what is carried from call to call, or None.
    """
    return Context.of(
        batch=stream.shape[0],
        length=stream.shape[1],
        device=stream.device,
        attention_mask=attention_mask,
        position_ids=position_ids,
        labels=labels,
        cache=cache,
        first_slot=0,
    )


def answer(
    model: WholeModel,
    *,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    past_key_values: Any,
    inputs_embeds: Tensor | None,
    use_cache: bool | None,
    logits_to_keep: int | Tensor | None,
) -> Any:
    """Answer as a Hugging Face causal language model; the arguments are those of its `forward`.

    Args:
        model: the model.
        input_ids: see there.
        attention_mask: see there.
        position_ids: see there.
        labels: see there.
        past_key_values: see there.
        inputs_embeds: see there.
        use_cache: see there.
        logits_to_keep: see there.
    """
    from memtx.models.output import LanguageModelOutput

    cache = past_key_values
    if use_cache and cache is None:
        from transformers import DynamicCache

        cache = DynamicCache()
    stream = stream_of(model, input_ids=input_ids, inputs_embeds=inputs_embeds)
    context = context_of(
        stream,
        attention_mask=attention_mask,
        position_ids=position_ids,
        labels=labels,
        cache=cache,
    )
    hidden = model.hidden_of(stream, context)
    loss, losses = None, None
    if labels is not None:
        loss, losses = _loss(model, hidden, labels=labels, context=context)
    kept = hidden
    if logits_to_keep is not None:
        last = isinstance(logits_to_keep, int)
        kept = hidden[:, slice(-logits_to_keep, None) if last else logits_to_keep]
    return LanguageModelOutput(
        loss=loss, logits=model.head(kept), past_key_values=cache, router_losses=losses
    )


def _loss(
    model: WholeModel, hidden: Tensor, *, labels: Tensor, context: Context
) -> tuple[Tensor, dict[str, Tensor]]:
    targets = labels[:, 1:]
    real = context.own(context.real)
    # What stands before the first token of a padded row does not speak of it.
    chosen = (targets != IGNORED) & real[:, 1:] & real[:, :-1]
    if context.packed:
        # The last token of a document does not speak of the next one's first.
        document = context.document
        chosen = chosen & (document[:, 1:] == document[:, :-1])
    # How many are chosen, a trace cannot know: there the others are carried along.
    rows, wanted = hidden[:, :-1].flatten(0, 1), torch.where(chosen, targets, IGNORED).flatten()
    if not torch.compiler.is_compiling():
        rows, wanted = hidden[:, :-1][chosen], targets[chosen]
    total = chunked_cross_entropy(rows, wanted, model.output_head, _LOSS_CHUNK)
    loss = total / chosen.sum().clamp(min=1)
    losses = router_losses(context)
    for value, weight in losses.values():
        loss = loss + weight * value
    return loss, {name: value for name, (value, _) in losses.items()}
