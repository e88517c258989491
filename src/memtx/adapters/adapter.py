"""A memory inside a frozen pretrained model, reversible and switchable."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtx.adapters import checkpointing, sharing
from memtx.adapters.causal_lm import CausalLM
from memtx.adapters.compilation import forget_compiled
from memtx.adapters.devices import device_of, settle
from memtx.adapters.families import inner_model
from memtx.adapters.hooks import attach
from memtx.adapters.insertion import Insertion
from memtx.adapters.memory import check_memory, num_slots, refuse_merging
from memtx.adapters.reading import Reading
from memtx.adapters.state import keep_memory_alone
from memtx.adapters.tenancy import Tenancy
from memtx.expression import component
from memtx.memory.prompts import require_one_prompt


@final
@component
class MemoryAdapter(nn.Module):
    """A Hugging Face causal language model that reads memories at chosen places.

    The base's own modules stay where they are and its code is not rewritten: memory enters by
    hooks on them, outside the KV cache. The base's parameters are frozen (those of a PEFT adapter
    already in it are left as they are). Called like the base, it answers like the base.

    Args:
        base: the pretrained model (or a PEFT model of it).
        banks: every bank the insertions read, each once; they are owned here so that sharing
            survives sharded training and saving.
        insertions: where the memory is read; at most one for each layer and site.

    Shapes:
        As the base: `input_ids [batch, length]` to `logits [batch, length, vocab]`.

    Raises:
        ValueError: if the architecture is unknown, a layer does not exist, two insertions share a
            place, a width differs from the base's, or `banks` is not the banks that are read.

    Source: adapters in frozen models (Houlsby et al. 2019, arXiv 1902.00751), with memory reading
    as the adapter; the residual stream is changed from outside the layer.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from memtx import *
        >>> base = LlamaForCausalLM(LlamaConfig(
        ...     vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=2))
        >>> def linear(init: Normal | Zeros) -> Linear:
        ...     return Linear(in_features=8, out_features=8, bias=False, init=init)
        >>> bank = StandardMemoryBank(num_memory_tokens=4, dim=8, init=Normal(std=1.0))
        >>> read = Residual(norm=RMSNorm(dim=8, eps=1e-5), sublayer=MemoryCrossAttention(
        ...     bank=bank, q_proj=linear(Normal(std=0.3)), k_proj=linear(Normal(std=0.3)),
        ...     v_proj=linear(Normal(std=0.3)), o_proj=linear(Zeros()),
        ...     num_heads=2, num_kv_heads=2, dropout=0.0))
        >>> adapter = MemoryAdapter(base=base, banks=[bank], insertions=[
        ...     Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[read])])
        >>> sum(p.numel() for p in adapter.memory_parameters())
        296
    """

    def __init__(
        self, *, base: nn.Module, banks: list[nn.Module], insertions: list[Insertion]
    ) -> None:
        super().__init__()
        check_memory(owner=self, base=base, banks=banks, insertions=insertions)
        self.base = base
        self.banks = nn.ModuleList(banks)
        self.insertions = nn.ModuleList(insertions)
        self._checkpointing = False
        self._tenancy = Tenancy.enter(base)
        settle(base=base, banks=banks, insertions=insertions)
        self.train(base.training)
        keep_memory_alone(self, parts=("banks", "insertions"))
        wanted = any(insertion.asks_for_context for insertion in insertions)
        first_slot = self._tenancy.reserve(num_slots(insertions) if wanted else 0)
        self._reading = Reading(base=base, wanted=wanted, first_slot=first_slot)
        forget_compiled()
        self._handles: list[RemovableHandle] = self._reading.attach() + [
            handle
            for insertion in insertions
            for handle in attach(
                base=base, insertion=insertion, is_on=self.is_enabled, reading=self._reading
            )
        ]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the base with its memory: a Hugging Face causal-LM output.

        Args:
            input_ids: token ids `[batch, length]`; absent when `inputs_embeds` is passed through.
            attention_mask: 1 at real tokens, 0 at padding; absent, all are real.
            position_ids: positions; absent, the base counts them.
            labels: targets, -100 where none; absent, no loss is made. The weighted losses of
                routers are added to the loss.
            **kwargs: passed to the base as they are.
        """
        output = self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            **kwargs,
        )
        items = kwargs.get("num_items_in_batch")
        return self._reading.with_router_losses(output, labels=labels, items=items)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base's `generate` with its memory; all arguments pass through.

        Args:
            *args: passed to the base.
            **kwargs: passed to the base.

        Raises:
            ValueError: if a router chooses from the prompt, without a cache or where the prompt is
                read in chunks.
        """
        require_one_prompt(
            owner=self,
            parts=self.insertions.modules() if self.is_enabled() else (),
            config=self.base.generation_config,
            args=args,
            options=kwargs,
        )
        return self.base.generate(*args, **kwargs)  # type: ignore[operator]

    save_pretrained = sharing.save_pretrained
    from_pretrained = staticmethod(sharing.from_pretrained)
    push_to_hub = sharing.push_to_hub

    def halves(self) -> CausalLM:
        """Give the base's backbone and head, for losses that hold few logits at a time."""
        return CausalLM(model=self.base, reading=self._reading)

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return inner_model(self.base).config

    @property
    def loss_type(self) -> Any:
        """The name of the base's loss: `Trainer` of transformers counts labels by it."""
        return getattr(inner_model(self.base), "loss_type", None)

    @property
    def device(self) -> torch.device:
        """The device on which the base's embeddings compute."""
        return device_of(inner_model(self.base).get_input_embeddings())  # type: ignore[operator]

    def is_enabled(self) -> bool:
        """Tell whether the memory is read in this thread."""
        return self._reading.is_on

    def disabled(self) -> AbstractContextManager[None]:
        """Switch the memory off inside a `with` block: the base answers, bit for bit.

        As torch's `no_grad`, it is for the thread that is in the block: others read on, those that
        were started in it among them.
        """
        return self._reading.off()

    def remove(self) -> nn.Module:
        """Take the memory out for good and give back the base as it was before."""
        if self._checkpointing:
            self.gradient_checkpointing_disable()
        if self._handles:
            forget_compiled()
            while self._handles:
                self._handles.pop().remove()
            self._tenancy.release(self._reading.first_slot)
            self._tenancy.leave()
        return self.base

    def merge(self) -> NoReturn:
        """Refuse: a memory is no weight that could be added to one of the base's.

        Raises:
            ValueError: always.
        """
        refuse_merging(owner=self, names=None)

    def memory_parameters(self) -> Iterator[nn.Parameter]:
        """Give the parameters of banks and insertions, each once."""
        return (parameter for _, parameter in self.named_memory_parameters())

    def named_memory_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give names and parameters of banks and insertions; a shared bank counts under `banks`."""
        parts = nn.ModuleDict({"banks": self.banks, "insertions": self.insertions})
        return parts.named_parameters()

    activation_checkpointing_enable = checkpointing.activation_checkpointing_enable
    gradient_checkpointing_enable = checkpointing.gradient_checkpointing_enable

    def recompute(self, options: dict[str, Any], how: dict[str, Any]) -> None:
        """Switch gradient checkpointing on; `activation_checkpointing_enable` calls it.

        Args:
            options: passed to `torch.utils.checkpoint`; `use_reentrant` is among them.
            how: passed to the base's own switch beside them.

        Raises:
            ValueError: if a memory is routed and `use_reentrant` is true.
        """
        reenters = bool(options["use_reentrant"])
        self._reading.check_checkpointing(use_reentrant=reenters)
        wrap = None if reenters else self._reading.replaying  # that kind takes no contexts
        checkpointing.switch_on(base=self.base, options=options, wrap=wrap, how=how)
        self._checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        checkpointing.switch_off(self.base)
        self._checkpointing = False

    activation_checkpointing_disable = gradient_checkpointing_disable
