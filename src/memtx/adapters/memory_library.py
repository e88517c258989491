"""Several named memories on one base, and a memory of its own for each row of a batch."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, cast, final

import torch
from torch import Tensor, nn

from memtx.adapters import checkpointing
from memtx.adapters.causal_lm import CausalLM
from memtx.adapters.choices import Choice, names_of, require_choices
from memtx.adapters.devices import device_of
from memtx.adapters.families import inner_model
from memtx.adapters.memory import Memory, refuse_merging
from memtx.adapters.shelf import Shelf
from memtx.adapters.stacking import parameters_at_rest
from memtx.adapters.state import keep_memory_alone
from memtx.checks import require
from memtx.expression import component
from memtx.interfaces import MemoryBank


@final
@component
class MemoryLibrary(nn.Module):
    """A Hugging Face causal language model and named memories, of which each row reads its own.

    As with `MemoryAdapter`, the base's modules stay where they are, its parameters are frozen, and
    nothing of a read is in the KV cache. At first no memory is active. `activate` chooses for all
    rows of every batch, `rows` for each row of the batches inside a `with` block; a choice is a
    name, `Together(names=[...])`, `InTurn(names=[...])`, or None for no memory. Memories read by
    other rows change nothing: each row gets what it gets alone.

    Rows of one memory are read together, and memories of the same sizes at once.

    Args:
        base: the pretrained model (or a PEFT model of it).
        memories: the memories by name; they are moved to the devices of their layers.

    Shapes:
        As the base: `input_ids [batch, length]` to `logits [batch, length, vocab]`.

    Raises:
        ValueError: if a memory does not fit the base, a name is unfit, or a memory is in a library
            already.

    Source: PEFT's `add_adapter`, `set_adapter`, `delete_adapter` and `adapter_names`, for memories,
    in training too.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import torch
        >>> from memtx import *
        >>> base = LlamaForCausalLM(LlamaConfig(
        ...     vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=2))
        >>> def linear() -> Linear:
        ...     return Linear(in_features=8, out_features=8, bias=False, init=Normal(std=0.3))
        >>> def memory() -> Memory:
        ...     bank = StandardMemoryBank(num_memory_tokens=4, dim=8, init=Normal(std=1.0))
        ...     return Memory(banks=[bank], insertions=[
        ...         Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[Residual(
        ...             norm=RMSNorm(dim=8, eps=1e-5), sublayer=MemoryCrossAttention(
        ...                 bank=bank, q_proj=linear(), k_proj=linear(), v_proj=linear(),
        ...                 o_proj=linear(), num_heads=2, num_kv_heads=2, dropout=0.0))])])
        >>> library = MemoryLibrary(base=base, memories={"anna": memory(), "bob": memory()})
        >>> ids = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
        >>> logits = library(input_ids=ids, memories=["anna", None, "bob"]).logits
        >>> torch.equal(logits[0], logits[2])
        False
    """

    def __init__(self, *, base: nn.Module, memories: dict[str, Memory]) -> None:
        super().__init__()
        self.base = base
        self.memories = nn.ModuleDict()
        self._checkpointing = False
        self._shelf = Shelf(base=base, owner=self, held=self.memories)
        keep_memory_alone(self, parts=("memories",))
        try:
            for name, memory in memories.items():
                self.add(name=name, memory=memory)
        except BaseException:
            self.remove()
            raise

    def add(self, *, name: str, memory: Memory) -> None:
        """Put a memory into the base under a name; it is not active yet.

        Args:
            name: what it is called; not empty, and without a dot.
            memory: the memory.

        Raises:
            ValueError: if the name is unfit or taken, the memory does not fit the base, or it is in
                a library already.
        """
        self._shelf.add(name=name, memory=memory)
        memory.train(self.training)

    def delete(self, name: str) -> Memory:
        """Take a memory out and give it back.

        Args:
            name: its name.

        Raises:
            ValueError: if there is no such memory, or it is being read.
        """
        self._require_known(name)
        users = [choice for choice in self._shelf.rows.chosen() if name in names_of(choice)]
        require(
            ok=not users,
            owner=self,
            rule="a memory that is deleted must not be active",
            got={"name": name, "active": users[0] if users else None},
            remedy="deactivate it first",
        )
        return self._shelf.take_out(name)

    def _require_known(self, name: str) -> None:
        require(
            ok=name in self.names,
            owner=self,
            rule=f"a memory that is named must be one of {self.names}",
            got={"name": name},
            remedy="see table() for what there is",
        )

    @property
    def names(self) -> list[str]:
        """The names of all memories, in the order they came."""
        return list(self.memories._modules)

    def memory(self, name: str) -> Memory:
        """Give a memory by its name.

        Args:
            name: its name.

        Raises:
            ValueError: if there is no such memory.
        """
        self._require_known(name)
        return self._shelf.memory(name)

    def activate(self, choice: Choice) -> None:
        """Let all rows of every batch read a memory from now on.

        Args:
            choice: a name, `Together(names=[...])`, `InTurn(names=[...])`, or None for none.

        Raises:
            ValueError: if a name is not known.
        """
        self._require_fit([choice])
        self._shelf.activate(choice)

    def deactivate(self) -> None:
        """Let no row read a memory from now on."""
        self.activate(None)

    @property
    def active(self) -> Choice:
        """What all rows read; None if that is nothing, or each row reads its own."""
        now = self._shelf.rows.now
        return now.choices[0] if now.everyone else None

    @contextmanager
    def rows(self, memories: Sequence[Choice]) -> Iterator[None]:
        """Let each row of the batches inside a `with` block read what is named for it.

        It is for the thread that is in the block, in which it goes before what is activated.

        Args:
            memories: for each row a name, a `Together`, an `InTurn`, or None for none.

        Raises:
            ValueError: if a name is not known; in a forward, if the batch has another number of
                rows.
        """
        require(
            ok=isinstance(memories, list) and len(memories) > 0,
            owner=self,
            rule="rows must be a list with a choice for each row",
            got={"memories": memories},
            remedy="name a memory, or None, for each row of the batch",
        )
        choices = list(memories)
        self._require_fit(choices)
        with self._shelf.rows.named(self._shelf.assignment(choices, everyone=False)):
            yield

    def _require_fit(self, choices: list[Choice]) -> None:
        require_choices(owner=self, choices=choices, known=self.names)
        self._shelf.require_one_order(choices)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        memories: Sequence[Choice] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the base with the memories in it: a Hugging Face causal-LM output.

        Args:
            input_ids: token ids `[batch, length]`; absent when `inputs_embeds` is passed through.
            attention_mask: 1 at real tokens, 0 at padding; absent, all are real.
            position_ids: positions; absent, the base counts them.
            labels: targets, -100 where none; absent, no loss is made. The weighted losses of
                routers are added to the loss.
            memories: what each row reads; absent, what `rows` or `activate` said.
            **kwargs: passed to the base as they are.
        """
        with nullcontext() if memories is None else self.rows(memories):
            output = self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                labels=labels,
                **kwargs,
            )
        items = kwargs.get("num_items_in_batch")
        return self._shelf.reading.with_router_losses(output, labels=labels, items=items)

    def generate(self, *args: Any, memories: Sequence[Choice] | None = None, **kwargs: Any) -> Any:
        """Call the base's `generate`; beams and repetitions of a row read what the row reads.

        Args:
            *args: passed to the base.
            memories: what each row of the prompts reads; absent, what `rows` or `activate` said.
            **kwargs: passed to the base.

        Raises:
            ValueError: if there are not as many choices as prompts, or a router chooses from the
                prompt, without a cache or where the prompt is read in chunks.
        """
        with nullcontext() if memories is None else self.rows(memories):
            rows = self._shelf.rows
            given = [*args[:1], *(kwargs.get(k) for k in ("inputs", "input_ids", "inputs_embeds"))]
            prompts = [each.shape[0] for each in given if isinstance(each, Tensor)]
            choices = rows.now.choices
            require(
                ok=rows.now.everyone or not prompts or prompts[0] == len(choices),
                owner=self,
                rule="rows must name a memory, or None, for each row of the batch",
                got={"names": len(choices), "batch": (prompts or [0])[0]},
                remedy="name as many as there are prompts; repetitions and beams follow their row",
            )
            self._shelf.require_one_prompt(args, kwargs)
            with rows.repeating(True), parameters_at_rest():
                return self.base.generate(*args, **kwargs)  # type: ignore[operator]

    def halves(self) -> CausalLM:
        """Give the base's backbone and head, for losses that hold few logits at a time."""
        return CausalLM(model=self.base, reading=self._shelf.reading)

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

    def disabled(self) -> AbstractContextManager[None]:
        """Switch all memories off inside a `with` block: the base answers, bit for bit.

        As torch's `no_grad`, it is for the thread that is in the block: others read on, those that
        were started in it among them.
        """
        return self._shelf.reading.off()

    def table(self) -> str:
        """Write the memories as a table: name, what it takes, where it is read, whether active."""
        lines = [f"{'memory':<24}{'parameters':>12}{'bytes':>14}{'tokens':>9}{'places':>8}  active"]
        active = {name for choice in self._shelf.rows.now.choices for name in names_of(choice)}
        for name in self.names:
            memory = self._shelf.memory(name)
            banks = cast("list[MemoryBank]", list(memory.banks))
            tokens = sum(bank.num_memory_tokens for bank in banks)
            sizes = f"{memory.num_parameters:>12,}{memory.num_bytes:>14,}{tokens:>9,}"
            mark = "  yes" if name in active else ""
            lines.append(f"{name:<24}{sizes}{len(memory.insertions):>8}{mark}")
        return "\n".join(lines)

    def merge(self, names: list[str]) -> NoReturn:
        """Refuse: a memory is no weight that could be added to one of the base's.

        Args:
            names: the memories that were to be merged.

        Raises:
            ValueError: always.
        """
        refuse_merging(owner=self, names=names)

    def remove(self) -> nn.Module:
        """Take all memories out for good and give back the base as it was before."""
        if self._checkpointing:
            self.gradient_checkpointing_disable()
        self._shelf.close()
        return self.base

    def memory_parameters(self) -> Iterator[nn.Parameter]:
        """Give the parameters of all memories, each once."""
        return self.memories.parameters()

    def named_memory_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give names and parameters of all memories; one that two share counts under the first."""
        return nn.ModuleDict({"memories": self.memories}).named_parameters()

    activation_checkpointing_enable = checkpointing.activation_checkpointing_enable
    gradient_checkpointing_enable = checkpointing.gradient_checkpointing_enable

    def recompute(self, options: dict[str, Any], how: dict[str, Any]) -> None:
        """Switch gradient checkpointing on; `activation_checkpointing_enable` calls it.

        Args:
            options: passed to `torch.utils.checkpoint`; `use_reentrant` is among them.
            how: passed to the base's own switch beside them.

        Raises:
            ValueError: if `use_reentrant` is true.
        """
        self._shelf.recompute(options, how)
        self._checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        checkpointing.switch_off(self.base)
        self._checkpointing = False

    activation_checkpointing_disable = gradient_checkpointing_disable
