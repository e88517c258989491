"""Linear-time models of tensor memory, and softmax transformers of the same number of parameters.

`small` is the source's small model, `model_30m` one of thirty million parameters, and `tiny` one
to try out on a CPU. `tiny_decaying` has heads that forget at different rates: a tensor memory by
itself does not know the order of what it holds, and what a head that forgets holds is recent.
`hybrid` sets the state, which is of one text, beside a learned bank, which is of all.
"""

from factories.parts import gated_mlp, routed_read
from memtx import (
    GELU,
    DecayingTensorMemory,
    FeedForward,
    LayerNorm,
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
    StandardMemoryBank,
    TensorMemory,
    TensorMemoryBlock,
    TensorMemoryConfig,
    TensorMemoryLM,
    TiedHead,
    TokenEmbedding,
)


def memory_config(*, dim: int, use_delta_rule: bool) -> TensorMemoryConfig:
    """Give the source's values for heads of a width."""
    return TensorMemoryConfig(
        dim=dim,
        eps=1e-6,
        use_delta_rule=use_delta_rule,
        max_delta=10.0,
        max_memory=100.0,
        max_norm=1000.0,
    )


# Tensor memory -----------------------------------------------------------------------------------


def block_tiny() -> TensorMemoryBlock:
    """Give a block of 4 heads of 32."""
    config = memory_config(dim=32, use_delta_rule=True)
    return TensorMemoryBlock(
        attention=LinearMemoryAttention(
            memory=MultiHeadMemory([TensorMemory(config) for _ in range(4)]),
            hidden_size=128,
            bias=True,
            normalize_qkv=False,
        ),
        d_ff=512,
        dropout=0.0,
    )


def tiny(*, vocab_size: int) -> TensorMemoryLM:
    """Compose a model of four layers: 0.8 million parameters and the embedding."""
    return TensorMemoryLM(
        vocab_size=vocab_size,
        dropout=0.0,
        layers=[block_tiny(), block_tiny(), block_tiny(), block_tiny()],
    )


def block_decaying_tiny() -> TensorMemoryBlock:
    """Give a block of 4 heads of 32: of the last token, the last two or three, ten, and all.

    A head that forgets fast has the plain rule: what it reads is the token before, however little
    is left of it, and the delta rule would take that off every token that is written.
    """
    plain = memory_config(dim=32, use_delta_rule=False)
    return TensorMemoryBlock(
        attention=LinearMemoryAttention(
            memory=MultiHeadMemory(
                [
                    DecayingTensorMemory(plain, decay=0.001),
                    DecayingTensorMemory(plain, decay=0.6),
                    DecayingTensorMemory(plain, decay=0.9),
                    TensorMemory(memory_config(dim=32, use_delta_rule=True)),
                ]
            ),
            hidden_size=128,
            bias=True,
            normalize_qkv=False,
        ),
        d_ff=512,
        dropout=0.0,
    )


def tiny_decaying(*, vocab_size: int) -> TensorMemoryLM:
    """Compose a model as large as `tiny` whose heads forget at different rates."""
    return TensorMemoryLM(
        vocab_size=vocab_size,
        dropout=0.0,
        layers=[
            block_decaying_tiny(),
            block_decaying_tiny(),
            block_decaying_tiny(),
            block_decaying_tiny(),
        ],
    )


def block_small() -> TensorMemoryBlock:
    """Give a block of 4 heads of 64."""
    config = memory_config(dim=64, use_delta_rule=True)
    return TensorMemoryBlock(
        attention=LinearMemoryAttention(
            memory=MultiHeadMemory([TensorMemory(config) for _ in range(4)]),
            hidden_size=256,
            bias=True,
            normalize_qkv=False,
        ),
        d_ff=1024,
        dropout=0.1,
    )


def small(*, vocab_size: int) -> TensorMemoryLM:
    """Compose the source's small model: 3.2 million parameters and the embedding."""
    return TensorMemoryLM(
        vocab_size=vocab_size,
        dropout=0.1,
        layers=[block_small(), block_small(), block_small(), block_small()],
    )


def block_30m() -> TensorMemoryBlock:
    """Give a block of 8 heads of 64."""
    config = memory_config(dim=64, use_delta_rule=True)
    return TensorMemoryBlock(
        attention=LinearMemoryAttention(
            memory=MultiHeadMemory([TensorMemory(config) for _ in range(8)]),
            hidden_size=512,
            bias=True,
            normalize_qkv=False,
        ),
        d_ff=2048,
        dropout=0.1,
    )


def model_30m(*, vocab_size: int) -> TensorMemoryLM:
    """Compose a model of eight layers: 25 million parameters and the embedding."""
    return TensorMemoryLM(
        vocab_size=vocab_size,
        dropout=0.1,
        layers=[
            block_30m(),
            block_30m(),
            block_30m(),
            block_30m(),
            block_30m(),
            block_30m(),
            block_30m(),
            block_30m(),
        ],
    )


# Softmax attention of equal size -----------------------------------------------------------------


def biased(in_features: int, out_features: int) -> Linear:
    """Give a map with a bias that keeps the spread of what it maps."""
    return Linear(
        in_features=in_features,
        out_features=out_features,
        bias=True,
        init=Normal(std=in_features**-0.5),
    )


def into_stream(in_features: int, out_features: int, *, bias: bool) -> Linear:
    """Give a map that starts as quiet as the tokens that its output is added to."""
    return Linear(
        in_features=in_features,
        out_features=out_features,
        bias=bias,
        init=Normal(std=0.1 * in_features**-0.5),
    )


def attend(*, dim: int, num_heads: int, dropout: float) -> Residual:
    """Give causal softmax attention with as many parameters as a `LinearMemoryAttention`."""
    return Residual(
        norm=LayerNorm(dim=dim, eps=1e-5),
        sublayer=SelfAttention(
            q_proj=biased(dim, dim),
            k_proj=biased(dim, dim),
            v_proj=biased(dim, dim),
            o_proj=into_stream(dim, dim, bias=False),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            rotary=RotaryEmbedding(head_dim=dim // num_heads, max_positions=2_048, base=10_000.0),
            dropout=dropout,
        ),
    )


def think(*, dim: int, inner: int) -> Residual:
    """Give the feed-forward network of a `TensorMemoryBlock`."""
    return Residual(
        norm=LayerNorm(dim=dim, eps=1e-5),
        sublayer=FeedForward(
            up_proj=biased(dim, inner),
            activation=GELU(),
            down_proj=into_stream(inner, dim, bias=True),
        ),
    )


def softmax_tiny_block() -> MemoryBlock:
    """Give a block of 4 heads of 32."""
    return MemoryBlock(
        sublayers=[attend(dim=128, num_heads=4, dropout=0.0), think(dim=128, inner=512)]
    )


def softmax_tiny(*, vocab_size: int) -> MemoryTransformer:
    """Compose a softmax transformer with as many parameters as `tiny`."""
    embedding = TokenEmbedding(vocab_size=vocab_size, dim=128, init=Normal(std=0.08))
    return MemoryTransformer(
        embedding=embedding,
        banks=[],
        layers=[
            softmax_tiny_block(),
            softmax_tiny_block(),
            softmax_tiny_block(),
            softmax_tiny_block(),
        ],
        norm=LayerNorm(dim=128, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


def softmax_small_block() -> MemoryBlock:
    """Give a block of 4 heads of 64."""
    return MemoryBlock(
        sublayers=[attend(dim=256, num_heads=4, dropout=0.1), think(dim=256, inner=1024)]
    )


def softmax_small(*, vocab_size: int) -> MemoryTransformer:
    """Compose a softmax transformer with as many parameters as `small`."""
    embedding = TokenEmbedding(vocab_size=vocab_size, dim=256, init=Normal(std=0.06))
    return MemoryTransformer(
        embedding=embedding,
        banks=[],
        layers=[
            softmax_small_block(),
            softmax_small_block(),
            softmax_small_block(),
            softmax_small_block(),
        ],
        norm=LayerNorm(dim=256, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


def softmax_30m_block() -> MemoryBlock:
    """Give a block of 8 heads of 64."""
    return MemoryBlock(
        sublayers=[attend(dim=512, num_heads=8, dropout=0.1), think(dim=512, inner=2048)]
    )


def softmax_30m(*, vocab_size: int) -> MemoryTransformer:
    """Compose a softmax transformer with as many parameters as `model_30m`."""
    embedding = TokenEmbedding(vocab_size=vocab_size, dim=512, init=Normal(std=0.05))
    return MemoryTransformer(
        embedding=embedding,
        banks=[],
        layers=[
            softmax_30m_block(),
            softmax_30m_block(),
            softmax_30m_block(),
            softmax_30m_block(),
            softmax_30m_block(),
            softmax_30m_block(),
            softmax_30m_block(),
            softmax_30m_block(),
        ],
        norm=LayerNorm(dim=512, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


# Tensor memory and a learned bank ----------------------------------------------------------------


def remember() -> Residual:
    """Give a tensor memory of 4 heads of 64."""
    config = memory_config(dim=64, use_delta_rule=True)
    return Residual(
        norm=RMSNorm(dim=256, eps=1e-5),
        sublayer=LinearMemoryAttention(
            memory=MultiHeadMemory([TensorMemory(config) for _ in range(4)]),
            hidden_size=256,
            bias=True,
            normalize_qkv=False,
        ),
    )


def recall(bank: StandardMemoryBank) -> Residual:
    """Give a read of 288 of 4,096 tokens: 9 chapters of 128, each of 32 tokens."""
    return routed_read(
        bank,
        dim=256,
        kv_dim=256,
        num_heads=4,
        num_kv_heads=4,
        num_chapters=128,
        top_k=8,
        window=16,
    )


def hybrid(*, vocab_size: int) -> MemoryTransformer:
    """Compose a linear-time model whose first and last layers read a learned bank.

    No part compares tokens of the text with each other, so a text may be of any length.
    """
    bank = StandardMemoryBank(num_memory_tokens=4_096, dim=256, init=Normal(std=1.0))
    embedding = TokenEmbedding(vocab_size=vocab_size, dim=256, init=Normal(std=0.06))
    return MemoryTransformer(
        embedding=embedding,
        banks=[bank],
        layers=[
            MemoryBlock(sublayers=[remember(), recall(bank), gated_mlp(dim=256, inner=512)]),
            MemoryBlock(sublayers=[remember(), gated_mlp(dim=256, inner=512)]),
            MemoryBlock(sublayers=[remember(), gated_mlp(dim=256, inner=512)]),
            MemoryBlock(sublayers=[remember(), recall(bank), gated_mlp(dim=256, inner=512)]),
        ],
        norm=RMSNorm(dim=256, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )
