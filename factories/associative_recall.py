"""Models of two layers that recall associations: what was written beside a key, when it returns.

A text is `key value key value ...`, then keys that each ask for their value. A layer of tensor
memory reads what came before without knowing where it stood, so the pair has to be made first: a
head that forgets nearly everything at each token holds the token before, which gives the first
layer `key` at the place of `value`. The second layer writes the value under the key and finds it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from factories.parts import linear
from memtx import (
    GELU,
    DecayingTensorMemory,
    FeedForward,
    Linear,
    LinearMemoryAttention,
    MemoryBlock,
    MemoryTransformer,
    MultiHeadMemory,
    Normal,
    Residual,
    RMSNorm,
    RotaryEmbedding,
    SelfAttention,
    TensorMemory,
    TensorMemoryBlock,
    TensorMemoryConfig,
    TensorMemoryLM,
    TiedHead,
    TokenEmbedding,
)

Model = TensorMemoryLM | MemoryTransformer
Head = TensorMemory | DecayingTensorMemory


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models on one task, and how they are trained; each model is made when called."""

    models: dict[str, Callable[[], Model]]
    vocab_size: int
    num_pairs: list[int]
    tokens_per_pair: int
    tokens_per_step: int
    steps: int
    every: int
    rows_of_test: int
    learning_rates: dict[str, float]
    # What is done to a model before a step: a rule holds no parameters, so it can be exchanged.
    changes: dict[str, Callable[[Model], None]]
    change_at: int


def config(*, dim: int, use_delta_rule: bool) -> TensorMemoryConfig:
    """Give the values of a head of a width."""
    return TensorMemoryConfig(
        dim=dim,
        eps=1e-6,
        use_delta_rule=use_delta_rule,
        max_delta=10.0,
        max_memory=100.0,
        max_norm=1000.0,
    )


def block(head: Head, *, dim: int) -> TensorMemoryBlock:
    """Give a block of one head: one wide state tells more keys apart than several narrow ones."""
    return TensorMemoryBlock(
        attention=LinearMemoryAttention(
            memory=MultiHeadMemory([head]), hidden_size=dim, bias=True, normalize_qkv=False
        ),
        d_ff=2 * dim,
        dropout=0.0,
    )


def token_before(*, dim: int) -> TensorMemoryBlock:
    """Give a block that reads the token before: of the one before that a thousandth is left."""
    plain = config(dim=dim, use_delta_rule=False)
    return block(DecayingTensorMemory(plain, decay=0.001), dim=dim)


@torch.no_grad()
def started(model: TensorMemoryLM) -> TensorMemoryLM:
    """Let tokens be told apart from the start, in the stream and by the keys of the last layer.

    The usual start suits texts, whose tokens need not be told apart so sharply; by it the features
    of any two keys are all but alike, and nothing is found until they have grown apart.
    """
    model.embedding.weight.normal_(std=0.8 / model.embedding.dim**0.5)
    last: Any = model.layers[-1]
    for project in (last.attention.q_proj, last.attention.k_proj):
        project.weight.mul_(6.0)
    return model


def behind(head: Head, *, vocab_size: int, dim: int) -> TensorMemoryLM:
    """Compose the token before, then a memory of one head."""
    layers = [token_before(dim=dim), block(head, dim=dim)]
    return started(TensorMemoryLM(vocab_size=vocab_size, dropout=0.0, layers=layers))


def delta(*, vocab_size: int, dim: int) -> TensorMemoryLM:
    """Compose the token before, then a memory of the delta rule."""
    memory = TensorMemory(config(dim=dim, use_delta_rule=True))
    return behind(memory, vocab_size=vocab_size, dim=dim)


def plain(*, vocab_size: int, dim: int) -> TensorMemoryLM:
    """Compose the token before, then a memory of the plain rule."""
    memory = TensorMemory(config(dim=dim, use_delta_rule=False))
    return behind(memory, vocab_size=vocab_size, dim=dim)


def decaying(*, vocab_size: int, dim: int) -> TensorMemoryLM:
    """Compose the token before, then a memory of which half is left after 138 tokens."""
    memory = DecayingTensorMemory(config(dim=dim, use_delta_rule=False), decay=0.995)
    return behind(memory, vocab_size=vocab_size, dim=dim)


def wide(*, vocab_size: int, dim: int) -> TensorMemoryLM:
    """Compose `plain` with a head twice as wide as the stream: a state four times as large."""
    memory = TensorMemory(config(dim=2 * dim, use_delta_rule=False))
    return behind(memory, vocab_size=vocab_size, dim=dim)


def follow_the_delta_rule(model: Model) -> None:
    """Let the last layer of a model that has learned with the plain rule follow the delta rule."""
    last: Any = model.layers[-1]
    dim = last.attention.memory.dim
    last.attention.memory = MultiHeadMemory([TensorMemory(config(dim=dim, use_delta_rule=True))])


def delta_alone(*, vocab_size: int, dim: int) -> TensorMemoryLM:
    """Compose two layers of the delta rule, neither of which knows what stands side by side."""
    memories = [TensorMemory(config(dim=dim, use_delta_rule=True)) for _ in range(2)]
    layers = [block(memories[0], dim=dim), block(memories[1], dim=dim)]
    return started(TensorMemoryLM(vocab_size=vocab_size, dropout=0.0, layers=layers))


def tokens(*, vocab_size: int, dim: int) -> TokenEmbedding:
    """Give tokens that start as large as what `quiet` layers add to them."""
    return TokenEmbedding(vocab_size=vocab_size, dim=dim, init=Normal(std=1.6 / dim**0.5))


def quiet(in_features: int, out_features: int, *, dim: int) -> Linear:
    """Give a map into the stream that leaves the tokens in it audible at the start."""
    return Linear(
        in_features=in_features,
        out_features=out_features,
        bias=False,
        init=Normal(std=2.4 / dim**0.5 * in_features**-0.5),
    )


def attend(*, dim: int) -> Residual:
    """Give softmax attention with rotary positions, of two heads."""
    return Residual(
        norm=RMSNorm(dim=dim, eps=1e-5),
        sublayer=SelfAttention(
            q_proj=linear(dim, dim),
            k_proj=linear(dim, dim),
            v_proj=linear(dim, dim),
            o_proj=quiet(dim, dim, dim=dim),
            num_heads=2,
            num_kv_heads=2,
            rotary=RotaryEmbedding(head_dim=dim // 2, max_positions=1_024, base=10_000.0),
            dropout=0.0,
        ),
    )


def think(*, dim: int) -> Residual:
    """Give a feed-forward network of twice the width."""
    return Residual(
        norm=RMSNorm(dim=dim, eps=1e-5),
        sublayer=FeedForward(
            up_proj=linear(dim, 2 * dim),
            activation=GELU(),
            down_proj=quiet(2 * dim, dim, dim=dim),
        ),
    )


def softmax(*, vocab_size: int, dim: int) -> MemoryTransformer:
    """Compose two layers of softmax attention of the same width."""
    embedding = tokens(vocab_size=vocab_size, dim=dim)
    return MemoryTransformer(
        embedding=embedding,
        banks=[],
        layers=[
            MemoryBlock(sublayers=[attend(dim=dim), think(dim=dim)]),
            MemoryBlock(sublayers=[attend(dim=dim), think(dim=dim)]),
        ],
        norm=RMSNorm(dim=dim, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


def softmax_behind(*, vocab_size: int, dim: int) -> MemoryTransformer:
    """Compose the token before by a head that forgets, then softmax attention of the same width."""
    embedding = tokens(vocab_size=vocab_size, dim=dim)
    plain_rule = config(dim=dim, use_delta_rule=False)
    before = LinearMemoryAttention(
        memory=MultiHeadMemory([DecayingTensorMemory(plain_rule, decay=0.001)]),
        hidden_size=dim,
        bias=True,
        normalize_qkv=False,
    )
    with torch.no_grad():
        before.o_proj.weight.mul_(2.4 / dim**0.5)
    return MemoryTransformer(
        embedding=embedding,
        banks=[],
        layers=[
            MemoryBlock(
                sublayers=[
                    Residual(norm=RMSNorm(dim=dim, eps=1e-5), sublayer=before),
                    think(dim=dim),
                ]
            ),
            MemoryBlock(sublayers=[attend(dim=dim), think(dim=dim)]),
        ],
        norm=RMSNorm(dim=dim, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


def models(*, vocab_size: int, dim: int) -> dict[str, Callable[[], Model]]:
    """Give all models at a size."""
    composers: dict[str, Callable[..., Model]] = {
        "delta": delta,
        "plain, then delta": plain,
        "the same, wide": wide,
        "plain": plain,
        "decaying": decaying,
        "delta alone": delta_alone,
        "softmax": softmax,
        "softmax behind": softmax_behind,
    }
    return {
        name: partial(compose, vocab_size=vocab_size, dim=dim)
        for name, compose in composers.items()
    }


def quick() -> Comparison:
    """Compare at a size for a CPU: up to 8 pairs of a vocabulary of 128, at width 64."""
    return Comparison(
        models=models(vocab_size=128, dim=64),
        vocab_size=128,
        num_pairs=[2, 4, 8],
        tokens_per_pair=4,
        tokens_per_step=2_048,
        steps=400,
        every=50,
        rows_of_test=128,
        learning_rates={
            "delta": 3e-3,
            "plain, then delta": 3e-3,
            "the same, wide": 3e-3,
            "plain": 3e-3,
            "decaying": 3e-3,
            "delta alone": 3e-3,
            "softmax": 3e-3,
            "softmax behind": 3e-3,
        },
        changes={
            "plain, then delta": follow_the_delta_rule,
            "the same, wide": follow_the_delta_rule,
        },
        change_at=200,
    )


def full() -> Comparison:
    """Compare at full size: up to 64 pairs of a vocabulary of 8,192 in 512 tokens, on a GPU."""
    return Comparison(
        models=models(vocab_size=8_192, dim=128),
        vocab_size=8_192,
        num_pairs=[4, 8, 16, 32, 64],
        tokens_per_pair=8,
        tokens_per_step=16_384,
        steps=7_000,
        every=350,
        rows_of_test=512,
        learning_rates={
            "delta": 3e-3,
            "plain, then delta": 3e-3,
            "the same, wide": 3e-3,
            "plain": 3e-3,
            "decaying": 3e-3,
            "delta alone": 3e-3,
            "softmax": 3e-3,
            "softmax behind": 3e-3,
        },
        changes={
            "plain, then delta": follow_the_delta_rule,
            "the same, wide": follow_the_delta_rule,
        },
        change_at=3_500,
    )
