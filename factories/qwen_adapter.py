"""Memory in a frozen Qwen2.5: 1.5B and 0.5B spelled out, and a tiny base that is made here."""

from pathlib import Path

from torch import nn

from factories.teaching import Lesson, background_rows, pretrained_lesson, teacher
from factories.tiny_base import manual, pretrain, stories
from factories.world import invented_facts
from memtx import (
    Insertion,
    Linear,
    MemoryAdapter,
    MemoryCrossAttention,
    Normal,
    Residual,
    RMSNorm,
    Site,
    StandardMemoryBank,
    Zeros,
)
from memtx.train import DataParallel, SingleProcess


def memory_for_1_5b(base: nn.Module) -> MemoryAdapter:
    """Put 2,048 memory tokens, read in layers 0 to 4 and 23 to 27, into Qwen2.5-1.5B."""
    bank = StandardMemoryBank(num_memory_tokens=2_048, dim=1_536, init=Normal(std=1.0))

    def linear(in_features: int, out_features: int) -> Linear:
        return Linear(
            in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.02)
        )

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=1_536, eps=1e-6),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(1_536, 1_536),
                k_proj=linear(1_536, 256),
                v_proj=linear(1_536, 256),
                o_proj=Linear(in_features=1_536, out_features=1_536, bias=False, init=Zeros()),
                num_heads=12,
                num_kv_heads=2,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=2, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=3, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=4, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=23, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=24, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=25, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=26, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=27, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
        ],
    )


def memory_for_0_5b(base: nn.Module) -> MemoryAdapter:
    """Put 2,048 memory tokens, read in layers 0 to 4 and 19 to 23, into Qwen2.5-0.5B."""
    bank = StandardMemoryBank(num_memory_tokens=2_048, dim=896, init=Normal(std=1.0))

    def linear(in_features: int, out_features: int) -> Linear:
        return Linear(
            in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.03)
        )

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=896, eps=1e-6),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(896, 896),
                k_proj=linear(896, 128),
                v_proj=linear(896, 128),
                o_proj=Linear(in_features=896, out_features=896, bias=False, init=Zeros()),
                num_heads=14,
                num_kv_heads=2,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=2, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=3, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=4, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=19, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=20, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=21, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=22, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=23, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
        ],
    )


def memory_for_tiny(base: nn.Module) -> MemoryAdapter:
    """Put 256 memory tokens, read in all four layers, into the tiny Qwen of `tiny_base`."""
    bank = StandardMemoryBank(num_memory_tokens=256, dim=128, init=Normal(std=1.0))

    def linear(in_features: int, out_features: int) -> Linear:
        return Linear(
            in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.1)
        )

    def recall() -> Residual:
        return Residual(
            norm=RMSNorm(dim=128, eps=1e-6),
            sublayer=MemoryCrossAttention(
                bank=bank,
                q_proj=linear(128, 128),
                k_proj=linear(128, 128),
                v_proj=linear(128, 128),
                o_proj=Linear(in_features=128, out_features=128, bias=False, init=Zeros()),
                num_heads=4,
                num_kv_heads=4,
                dropout=0.0,
            ),
        )

    return MemoryAdapter(
        base=base,
        banks=[bank],
        insertions=[
            Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=2, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
            Insertion(layer=3, site=Site.AFTER_ATTENTION, sublayers=[recall()]),
        ],
    )


def tiny(*, folder: Path, seed: int, parallelism: SingleProcess | DataParallel) -> Lesson:
    """Make a tiny base from nothing and compose the teaching of 200 invented facts."""
    old_facts, new_facts = invented_facts(seed=seed, num_old=100, num_new=200)
    topics, held_out = manual(seed=seed)
    documents = topics + stories(facts=old_facts, seed=seed)
    base, tokenizer = pretrain(
        documents=documents, folder=folder / "base", seed=seed, parallelism=parallelism
    )
    adapter = memory_for_tiny(base)
    trainer = teacher(
        adapter=adapter,
        tokenizer=tokenizer,
        facts=new_facts,
        background=background_rows(
            documents=documents, keep=old_facts[:50], tokenizer=tokenizer, length=64
        ),
        folder=folder / "checkpoints",
        parallelism=parallelism,
        steps=550,
        learning_rate=4e-3,
        facts_per_step=40,
        background_per_step=16,
        locality_weight=4.0,
        seed=seed,
    )
    return Lesson(
        adapter=adapter,
        tokenizer=tokenizer,
        base_name=str(folder / "base"),
        new_facts=new_facts,
        # The other half was used to protect what the base knows.
        old_facts=old_facts[50:],
        held_out=held_out,
        trainer=trainer,
    )


def qwen2_5_1_5b(*, folder: Path, seed: int, parallelism: SingleProcess | DataParallel) -> Lesson:
    """Load Qwen2.5-1.5B in bfloat16 and compose the teaching of 200 invented facts."""
    return pretrained_lesson(
        base_name="Qwen/Qwen2.5-1.5B",
        memory=memory_for_1_5b,
        folder=folder,
        seed=seed,
        parallelism=parallelism,
    )


def qwen2_5_0_5b(*, folder: Path, seed: int, parallelism: SingleProcess | DataParallel) -> Lesson:
    """Load Qwen2.5-0.5B in bfloat16 and compose the teaching of 200 invented facts."""
    return pretrained_lesson(
        base_name="Qwen/Qwen2.5-0.5B",
        memory=memory_for_0_5b,
        folder=folder,
        seed=seed,
        parallelism=parallelism,
    )
