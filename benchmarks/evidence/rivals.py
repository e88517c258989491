"""What a memory is compared with: LoRA and prefix tuning by the library peft, and fine-tuning."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from memtx.adapters import halves_of
from memtx.data.protocols import Batch
from memtx.modes import evaluating

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_lora(base: nn.Module, *, rank: int) -> Any:
    """Put a LoRA into every projection of a base, scaled as is usual: alpha is twice the rank."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=PROJECTIONS,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def numbers_per_virtual_token(config: Any) -> int:
    """Count what a prefix has to learn for each of its tokens: keys and values of all layers."""
    width = config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * width)


@final
class Prefixed(nn.Module):
    """A base with a prefix of peft, with the face that memtx's losses and measures ask for.

    They take hidden states from the backbone, to which peft's own forward would give the prefix.
    """

    def __init__(self, *, base: Any, num_virtual_tokens: int) -> None:
        super().__init__()
        from peft import PrefixTuningConfig, get_peft_model

        self.num_virtual_tokens = num_virtual_tokens
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens, prefix_projection=False
        )
        self.model: Any = get_peft_model(base, config)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_base_model().device
        return device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Answer as peft does."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask)

    def halves(self) -> "PrefixedHalves":
        return PrefixedHalves(model=self.model)


@final
class PrefixedHalves:
    """Backbone behind a prefix, and head."""

    def __init__(self, *, model: Any) -> None:
        self.model = model

    def hidden_states(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        """Run the backbone; positions go on behind the prefix, as in peft."""
        if position_ids is not None:
            raise ValueError("PrefixedHalves: packed rows have no place for a prefix; pad them.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        cache = self.model.get_prompt(batch_size=len(input_ids))
        before = mask.new_ones(len(mask), cache.get_seq_length())
        base = self.model.get_base_model()
        # Behind padding on the right comes no real token: counting on is right for all of them.
        out = base.get_decoder()(
            input_ids=input_ids,
            attention_mask=torch.cat([before, mask], dim=1),
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    @property
    def head(self) -> Any:
        """The head."""
        return halves_of(self.model.get_base_model()).head

    def router_losses(self) -> dict[str, tuple[Tensor, float]]:
        return {}


@final
@dataclass(frozen=True, kw_only=True)
class HeldToCopy:
    """`LocalityLoss` for what cannot be switched off: KL from a copy of the base, on background."""

    name: str
    stream: str
    weight: float
    before: Any

    def check(self, model: nn.Module) -> None:
        """Accept any model."""

    def weights(self, model: nn.Module) -> dict[str, float]:
        return {self.name: self.weight}

    def counts(self, model: nn.Module, batch: Batch) -> Tensor:
        return batch["attention_mask"].sum()[None]

    def totals(self, model: Any, batch: Batch) -> Tensor:
        """Sum KL(copy || model) over real tokens; the head may have been trained as well."""
        real = batch["attention_mask"].bool()
        with torch.no_grad(), evaluating(self.before):
            was = _log_probs(self.before, batch, real=real)
        now = _log_probs(model, batch, real=real)
        return (was.exp() * (was - now)).sum()[None]


def _log_probs(model: Any, batch: Batch, *, real: Tensor) -> Tensor:
    halves = halves_of(model)
    hidden = halves.hidden_states(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=None,
        labels=batch["labels"],
    )
    return halves.head(hidden[real]).float().log_softmax(dim=-1)
