"""The models that are trained in parts and in one piece, and one way to train them all."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.tensor import DTensor

from factories.tensor_memory import memory_config
from memtx import (
    FactorizedMemoryBank,
    HybridRouting,
    LinearMemoryAttention,
    MemoryBlock,
    MemoryTransformer,
    MultiHeadMemory,
    Normal,
    Residual,
    RMSNorm,
    RollingRouting,
    RotaryEmbedding,
    SelfAttention,
    TensorMemory,
    TensorMemoryBlock,
    TensorMemoryLM,
    TiedHead,
    TokenEmbedding,
)
from memtx.train import AdamW, Objective, ParameterGroup, Trainer
from tests import parts, routing
from tests.train import tiny

STEPS = 3
ROWS = 4  # of a step, over all processes
VOCABULARY, DIM = 320, 16
PROMPT = torch.tensor([[5, 7, 11, 13]])


def attend(rotary: RotaryEmbedding) -> Residual:
    attention = SelfAttention(
        q_proj=parts.linear(DIM, DIM),
        k_proj=parts.linear(DIM, DIM // 2),
        v_proj=parts.linear(DIM, DIM // 2),
        o_proj=parts.linear(DIM, DIM),
        num_heads=4,
        num_kv_heads=2,
        rotary=rotary,
        dropout=0.0,
    )
    return Residual(norm=RMSNorm(dim=DIM, eps=1e-5), sublayer=attention)


Compose = Callable[[], nn.Module]
Read = Callable[[nn.Module], Residual]


def stack(*, banks: list[nn.Module], reads: list[list[Residual]]) -> MemoryTransformer:
    """A model with a tied head, of blocks with the reads between attention and MLP."""
    rotary = RotaryEmbedding(head_dim=4, max_positions=128, base=10_000.0)
    embedding = TokenEmbedding(vocab_size=VOCABULARY, dim=DIM, init=Normal(std=1.0))
    layers = [MemoryBlock(sublayers=[attend(rotary), *each, parts.think(DIM)]) for each in reads]
    model = MemoryTransformer(
        embedding=embedding,
        banks=banks,
        layers=layers,
        norm=RMSNorm(dim=DIM, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )
    parts.randomize(model.parameters())
    return model


def dense_read(bank: nn.Module) -> Residual:
    return parts.recall(bank, DIM)


def routed_read(bank: nn.Module) -> Residual:
    """A routed reader with every loss: its statistics must be those of the global batch."""
    return routing.recall(
        bank,
        DIM,
        strategy=RollingRouting(window=2),
        mixing=routing.MIXINGS["joint"],
        losses=tiny.router_losses(),
    )


def shared(read: Read) -> MemoryTransformer:
    """One bank of an odd number of rows, read by two of three blocks."""
    bank = parts.bank_of(36, 6) if read is routed_read else parts.bank_of(7, DIM)
    return stack(banks=[bank], reads=[[read(bank)], [], [read(bank)]])


def per_layer() -> MemoryTransformer:
    """Each block reads a bank of its own; one is factorized."""
    banks = [
        parts.bank_of(7, DIM),
        FactorizedMemoryBank(num_memory_tokens=9, dim=DIM, rank=3, init=Normal(std=1.0)),
    ]
    return stack(banks=banks, reads=[[dense_read(bank)] for bank in banks])


def repeated() -> MemoryTransformer:
    """One block that stands twice, around another."""
    bank = parts.bank_of(7, DIM)
    model = stack(banks=[bank], reads=[[dense_read(bank)], []])
    twice, once = model.layers
    return MemoryTransformer(
        embedding=model.embedding,
        banks=[bank],
        layers=[twice, once, twice],
        norm=model.norm,
        head=model.head,
    )


def tensor_memory() -> TensorMemoryLM:
    config = memory_config(dim=4, use_delta_rule=True)

    def block() -> TensorMemoryBlock:
        attention = LinearMemoryAttention(
            memory=MultiHeadMemory([TensorMemory(config) for _ in range(4)]),
            hidden_size=DIM,
            bias=True,
            normalize_qkv=False,
        )
        return TensorMemoryBlock(attention=attention, d_ff=32, dropout=0.0)

    return TensorMemoryLM(vocab_size=VOCABULARY, dropout=0.0, layers=[block(), block()])


@torch.no_grad()
def push(model: nn.Module) -> None:
    """A push of every memory parameter, small enough that rounding stays small over the steps."""
    for parameter in model.memory_parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.15)


def adapter() -> nn.Module:
    model = tiny.adapter(model=tiny.base(seed=0))
    push(model)
    return model


def checkpointed_adapter() -> nn.Module:
    """The same, with its base's layers computed again in the backward pass."""
    model = adapter()
    model.gradient_checkpointing_enable()
    return model


def routed_adapter() -> nn.Module:
    return tiny.routed_adapter(model=tiny.base(seed=0), strategy=HybridRouting(window=2))


def lora_adapter() -> nn.Module:
    """Memory beside a LoRA in the base's layers."""
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    model = tiny.adapter(model=get_peft_model(tiny.base(seed=0), config))
    push(model)
    return model


MODELS: dict[str, Compose] = {
    "dense shared bank": lambda: shared(dense_read),
    "routed shared bank": lambda: shared(routed_read),
    "bank of each layer": per_layer,
    "block that stands twice": repeated,
    "tensor memory": tensor_memory,
    "adapter": adapter,
    "checkpointed adapter": checkpointed_adapter,
    "routed adapter": routed_adapter,
    "adapter and LoRA": lora_adapter,
}
WITH_BACKGROUND = ("adapter", "adapter and LoRA")


class Noting:
    """AdamW that notes the gradients of the first step, whole, as it gets them.

    Its eps is large: a gradient that is zero but for rounding must not move a weight either way.
    """

    def __init__(self, *, model: nn.Module) -> None:
        self.model = model
        self.noted: dict[str, torch.Tensor] = {}

    def make(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        made = AdamW(betas=(0.9, 0.95), eps=1e-2).make(groups)
        made.register_step_pre_hook(self.note)
        return made

    def note(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self.noted:
            trained = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
            self.noted = {k: whole(p.grad).clone() for k, p in trained.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts, made without any code of memtx."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


@dataclass
class Looking:
    """An evaluation that calls the model itself: by its forward, and by `generate`."""

    model: nn.Module
    every: int

    def measure(self) -> dict[str, float]:
        self.model.eval()
        logits = self.model(input_ids=PROMPT).logits
        ids = self.model.generate(input_ids=PROMPT, max_new_tokens=5, do_sample=False)
        self.model.train()
        return {"logits": logits.square().sum().item(), "generated": float(ids.sum())}


def trainer(name: str, *, parallelism: Any, accumulation: int) -> tuple[Trainer, Noting]:
    """Facts, the rows of a step divided among the processes and the parts of a step.

    Each process starts elsewhere: the first one's numbers must become everyone's.
    """
    torch.manual_seed(parallelism.rank)
    model = MODELS[name]()
    noting = Noting(model=model)
    rows = ROWS // (parallelism.world_size * accumulation)
    terms: list[Any] = [tiny.facts_term()]
    streams: dict[str, Any] = {"facts": tiny.fact_batches(batch_size=rows)}
    if name in WITH_BACKGROUND:
        terms.append(tiny.locality_term(weight=0.5))
        streams["background"] = tiny.text_batches(batch_size=rows)
    group = ParameterGroup(
        name="all", modules=[model], without=[], learning_rate=2e-3, weight_decay=0.1
    )
    composed = replace(
        tiny.trainer(model=tiny.adapter(model=tiny.base(seed=0)), steps=STEPS),
        objective=Objective(model=model, terms=terms),
        streams=streams,
        groups=[group],
        optimizer=noting,
        parallelism=parallelism,
        accumulation=accumulation,
        clip_norm=0.5,
        evaluations=[Looking(model=model, every=2)],
    )
    return composed, noting
