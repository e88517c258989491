"""What `adapter_step` times: memories, PEFT's adapters, and the bare base, each with its loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.adapter_memories import Memory
from benchmarks.clocks import Clock
from memtx import MemoryAdapter
from memtx.adapters.compilation import compile_parts
from memtx.adapters.families import decoder_layers
from memtx.data.protocols import Batch
from memtx.train import (
    AdamW,
    BankRows,
    BFloat16Autocast,
    Fresh,
    LocalityLoss,
    NextTokenLoss,
    Objective,
    Optimizer,
    ParameterGroup,
    RowAdagrad,
    SingleProcess,
    Trainer,
    WarmupCosine,
)
from memtx.train.sparse_gradients import sparse_bank_gradients

LEARNING_RATE = 5e-4
BETAS = (0.9, 0.99)
CLIP_NORM = 1.0
ADAM = AdamW(betas=BETAS, eps=1e-8)
CHUNK = 2_048  # tokens whose logits memtx's losses hold at a time: the recipe's value


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of one case: the base, the batch, how many steps, and the rivals' memory."""

    case: str
    config: Qwen2Config
    batch: int
    length: int
    warm_up: int
    timed: int
    memory: Memory
    upper_memory: Memory
    routed_memory: Callable[[nn.Module, int], MemoryAdapter]
    chapters_read: tuple[int, int]
    virtual_tokens: int
    device: torch.device

    @property
    def steps(self) -> int:
        """Steps of one run."""
        return self.warm_up + self.timed


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A variant that is ready to run: its model, and the loop that ticks a clock every step."""

    model: nn.Module
    run: Callable[[Clock], object]


@dataclass(frozen=True, kw_only=True)
class RandomTokens:
    """Batches of fresh random tokens; a label everywhere, no padding."""

    setting: Setting

    def next_batch(self, *, rank: int, world_size: int) -> Batch:
        """Give a batch on the CPU, as memtx's loop takes it."""
        return self._draw(torch.device("cpu"))

    def draw(self) -> Batch:
        """Draw one batch where the model is."""
        return self._draw(self.setting.device)

    def _draw(self, device: torch.device) -> Batch:
        size = (self.setting.batch, self.setting.length)
        ids = torch.randint(self.setting.config.vocab_size, size, device=device)
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing is kept: every batch is drawn afresh."""


def random_base(setting: Setting) -> nn.Module:
    """Make the base in bfloat16 with random weights, on the device from the start."""
    torch.manual_seed(0)
    with setting.device:
        base = AutoModelForCausalLM.from_config(setting.config, dtype=torch.bfloat16)
    return base.train()


def by_trainer(
    *,
    setting: Setting,
    model: nn.Module,
    terms: list[NextTokenLoss | LocalityLoss],
    groups: list[ParameterGroup],
    optimizer: Optimizer,
) -> Prepared:
    """Train by memtx's own loop, in float32 under bfloat16 autocast; the clock is its logger."""

    def run(clock: Clock) -> object:
        objective = Objective(model=model, terms=terms)
        return Trainer(
            objective=objective,
            streams={name: RandomTokens(setting=setting) for name in objective.streams},
            groups=groups,
            optimizer=optimizer,
            schedule=WarmupCosine(warmup_steps=0, total_steps=setting.steps, floor=1.0),
            precision=BFloat16Autocast(),
            parallelism=SingleProcess(device=setting.device),
            start=Fresh(),
            steps=setting.steps,
            accumulation=1,
            clip_norm=CLIP_NORM,
            evaluations=[],
            callbacks=[],
            checkpoints=[],
            loggers=[clock],
        ).run()

    return Prepared(model=model, run=run)


def group(*, name: str, modules: list[nn.Module], without: list[nn.Module]) -> ParameterGroup:
    """Give a parameter group of the benchmark's one learning rate."""
    return ParameterGroup(
        name=name, modules=modules, without=without, learning_rate=LEARNING_RATE, weight_decay=0.0
    )


def next_token() -> NextTokenLoss:
    """Give memtx's chunked loss."""
    return NextTokenLoss(name="text", stream="text", weight=1.0, chunk=CHUNK)


def memory(
    *, setting: Setting, put_into: Memory, terms: list[NextTokenLoss | LocalityLoss]
) -> Prepared:
    """Train a memory as the recipe does: the bank and what reads it, a group each."""
    adapter = put_into(random_base(setting))
    return by_trainer(
        setting=setting,
        model=adapter,
        terms=terms,
        groups=[
            group(name="bank", modules=[adapter.banks], without=[]),
            group(name="reading", modules=[adapter.insertions], without=[adapter.banks]),
        ],
        optimizer=ADAM,
    )


def routed_memory(*, setting: Setting, chapters_read: int) -> Prepared:
    """Train a large routed bank as the guide says: of its rows, those that were read."""
    adapter = setting.routed_memory(random_base(setting), chapters_read)
    sparse_bank_gradients(adapter)
    return by_trainer(
        setting=setting,
        model=adapter,
        terms=[next_token()],
        groups=[
            group(name="bank", modules=[adapter.banks], without=[]),
            group(name="reading", modules=[adapter.insertions], without=[adapter.banks]),
        ],
        optimizer=BankRows(rows=RowAdagrad(eps=1e-10), rest=ADAM, banks=list(adapter.banks)),
    )


def compiled(prepared: Prepared) -> Prepared:
    """The same with the parts between the hooks compiled."""
    compile_parts(prepared.model)
    return prepared


def lora(setting: Setting) -> nn.Module:
    """Put PEFT's LoRA of rank 16 on the query and value projections (its weights are float32)."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]
    )
    return get_peft_model(random_base(setting), config)


def compiled_lora(setting: Setting) -> nn.Module:
    """The same with every decoder layer compiled, as transformers' users compile regions."""
    model = lora(setting)
    for layer in decoder_layers(model):
        layer.compile()
    return model


def prefix(setting: Setting) -> nn.Module:
    """Put PEFT's prefix tuning on the base."""
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=setting.virtual_tokens
    )
    return get_peft_model(random_base(setting), config)


def by_own_loss(*, setting: Setting, model: Any) -> Prepared:
    """Train as transformers' Trainer does with `bf16=True`: the model's own loss, fused AdamW.

    Nothing waits for the GPU inside the loop, not even to look at the loss, in the rival's favour.
    """

    def run(clock: Clock) -> None:
        batches = RandomTokens(setting=setting)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=LEARNING_RATE, betas=BETAS, eps=1e-8, weight_decay=0.0, fused=True
        )
        model.train()
        for _ in range(setting.steps):
            with torch.autocast(setting.device.type, dtype=torch.bfloat16):
                loss = model(**batches.draw()).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.log({})
        if not loss.isfinite():
            raise FloatingPointError(f"the loss must stay finite, got {loss.item()}")

    return Prepared(model=model, run=run)


def bare_forward(setting: Setting) -> Prepared:
    """Run the frozen base alone, to its logits, without gradients: the floor of any adapter."""
    base: Any = random_base(setting).requires_grad_(False)

    def run(clock: Clock) -> None:
        batches = RandomTokens(setting=setting)
        for _ in range(setting.steps):
            batch = batches.draw()
            with torch.no_grad():
                base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            clock.log({})

    return Prepared(model=base, run=run)


def variants(setting: Setting) -> dict[str, Callable[[], Prepared]]:
    """Give every variant by name; each is built, on a base of its own, when it is called."""
    few, as_many = setting.chapters_read
    locality = LocalityLoss(name="locality", stream="background", weight=1.0, chunk=CHUNK)
    return {
        "memtx": lambda: memory(setting=setting, put_into=setting.memory, terms=[next_token()]),
        "memtx-upper-layers": lambda: memory(
            setting=setting, put_into=setting.upper_memory, terms=[next_token()]
        ),
        "memtx-locality": lambda: memory(
            setting=setting, put_into=setting.memory, terms=[next_token(), locality]
        ),
        "memtx-compiled": lambda: compiled(
            memory(setting=setting, put_into=setting.memory, terms=[next_token()])
        ),
        "memtx-upper-layers-compiled": lambda: compiled(
            memory(setting=setting, put_into=setting.upper_memory, terms=[next_token()])
        ),
        "memtx-routed": lambda: routed_memory(setting=setting, chapters_read=few),
        "memtx-routed-compiled": lambda: compiled(
            routed_memory(setting=setting, chapters_read=few)
        ),
        "memtx-routed-2048-compiled": lambda: compiled(
            routed_memory(setting=setting, chapters_read=as_many)
        ),
        "peft-lora-r16": lambda: by_own_loss(setting=setting, model=lora(setting)),
        "peft-lora-r16-compiled": lambda: by_own_loss(
            setting=setting, model=compiled_lora(setting)
        ),
        "peft-lora-r16-chunked-loss": lambda: peft_by_trainer(setting),
        f"peft-prefix-{setting.virtual_tokens}": lambda: by_own_loss(
            setting=setting, model=prefix(setting)
        ),
        "frozen-base-forward": lambda: bare_forward(setting),
    }


def peft_by_trainer(setting: Setting) -> Prepared:
    """Train PEFT's LoRA by memtx's loop and loss, so that only the adapters differ."""
    model = lora(setting)
    return by_trainer(
        setting=setting,
        model=model,
        terms=[next_token()],
        groups=[group(name="lora", modules=[model], without=[])],
        optimizer=ADAM,
    )
