"""A Hugging Face causal language model cut in two: hidden states, and the head on them."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.adapters.families import inner_model


@final
class CausalLM:
    """Backbone and head of a Hugging Face causal language model, so a loss can hold few logits.

    Args:
        model: the model, or a PEFT model of it.

    Source: memtx's own; the two halves of transformers' `*ForCausalLM.forward`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import torch
        >>> llama = LlamaForCausalLM(LlamaConfig(
        ...     vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=2))
        >>> halves = CausalLM(model=llama)
        >>> ids = torch.tensor([[1, 2]])
        >>> hidden = halves.hidden_states(input_ids=ids, attention_mask=torch.ones_like(ids))
        >>> torch.equal(halves.logits(hidden), llama(input_ids=ids).logits)
        True
    """

    def __init__(self, *, model: nn.Module) -> None:
        self.model = model

    def hidden_states(
        self, *, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim"]:
        """Run the backbone.

        Args:
            input_ids: token ids.
            attention_mask: 1 at real tokens, 0 at padding.
        """
        backbone: Any = inner_model(self.model).get_decoder()  # type: ignore[operator]
        out = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def logits(self, hidden: Float[Tensor, "*positions dim"]) -> Float[Tensor, "*positions vocab"]:
        """Run the head.

        Args:
            hidden: final hidden states.
        """
        inner: Any = inner_model(self.model)
        logits: Tensor = inner.get_output_embeddings()(hidden)
        cap = getattr(inner.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def halves_of(model: Any) -> CausalLM:
    """Cut a model in two, whether or not it carries a memory.

    Args:
        model: a Hugging Face causal language model or a `MemoryAdapter`.
    """
    halves: CausalLM = model.halves() if hasattr(model, "halves") else CausalLM(model=model)
    return halves
