"""A Hugging Face causal language model cut in two: hidden states, and the head on them."""

from contextlib import nullcontext
from typing import Any, final

from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.adapters.families import inner_model, is_peft
from memtx.adapters.reading import Reading
from memtx.checks import require
from memtx.context import holds_documents
from memtx.ops.heads import Head, head_of


@final
class CausalLM:
    """Backbone and head of a Hugging Face causal language model, so a loss can hold few logits.

    Args:
        model: the model, or a PEFT model of it.
        reading: of the memory in it; None if there is none.

    Source: memtx's own; the two halves of transformers' `*ForCausalLM.forward`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import torch
        >>> llama = LlamaForCausalLM(LlamaConfig(
        ...     vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=2))
        >>> halves = CausalLM(model=llama, reading=None)
        >>> ids = torch.tensor([[1, 2]])
        >>> hidden = halves.hidden_states(
        ...     input_ids=ids, attention_mask=None, position_ids=None, labels=None)
        >>> torch.equal(halves.logits(hidden), llama(input_ids=ids).logits)
        True
    """

    def __init__(self, *, model: nn.Module, reading: Reading | None) -> None:
        self.model = model
        self.reading = reading

    def hidden_states(
        self,
        *,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | None,
        position_ids: Int[Tensor, "batch length"] | None,
        labels: Int[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch length dim"]:
        """Run the backbone.

        Args:
            input_ids: token ids.
            attention_mask: 1 at real tokens, 0 at padding; None, all are real.
            position_ids: positions; None, the base counts them. Where they start again, a new
                document starts; padding must follow the documents then.
            labels: tell the memory's routers where the prompt ends; None, if there are none.
        """
        backbone: Any = inner_model(self.model).get_decoder()  # type: ignore[operator]
        mask = attention_mask
        if (
            mask is not None
            and position_ids is not None
            and holds_documents(attention_mask=mask, position_ids=position_ids)
        ):
            # transformers keeps packed documents apart only where there is no mask at all. Padding
            # behind them is seen by nobody; the memory is told of it.
            mask = None
        reading = self.reading
        with nullcontext() if reading is None else reading.told(labels, attention_mask):
            out = backbone(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=False,
            )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def router_losses(self) -> dict[str, tuple[Tensor, float]]:
        """Give the router losses of the last `hidden_states` by name, each with its weight."""
        return {} if self.reading is None else self.reading.router_losses()

    def logits(self, hidden: Float[Tensor, "*positions dim"]) -> Float[Tensor, "*positions vocab"]:
        """Run the head.

        Args:
            hidden: final hidden states.
        """
        return self.head(hidden)

    @property
    def head(self) -> Head:
        """The head, as the chunked losses take it."""
        inner: Any = inner_model(self.model)
        cap = getattr(inner.config, "final_logit_softcapping", None)
        return head_of(module=inner.get_output_embeddings(), cap=cap)


def halves_of(model: Any) -> Any:
    """Cut a model in two, whether or not it carries a memory: a `CausalLM`, or its like.

    Args:
        model: a Hugging Face causal language model, a `MemoryAdapter`, or a whole model of memtx,
            which gives halves of its own with the same face.

    Raises:
        ValueError: if it is a model of `peft` that learns a prompt or a prefix: these stand before
            the backbone's own input, which is called here without them.
    """
    learns_prompt = is_peft(model) and bool(
        getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    )
    require(
        ok=not learns_prompt,
        owner="halves_of",
        rule="a model of peft must change layers, not learn a prompt or a prefix",
        got={"peft_type": str(getattr(model, "peft_type", None)) if learns_prompt else None},
        remedy="call the model itself with labels, and take its loss",
    )
    return model.halves() if hasattr(model, "halves") else CausalLM(model=model, reading=None)
