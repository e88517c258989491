"""The 371M mixture of chapters of the source's paper, and its control without memory."""

from memtx import (
    ChapterRouter,
    JointSoftmax,
    Linear,
    LoadBalanceLoss,
    MemoryBlock,
    MemoryTransformer,
    Normal,
    Residual,
    RMSNorm,
    RollingRouting,
    RotaryEmbedding,
    RoutedMemoryCrossAttention,
    RouterZLoss,
    SelfAttention,
    SequenceRouting,
    StandardMemoryBank,
    SwiGLU,
    TiedHead,
    TokenEmbedding,
    Zeros,
)

Strategy = RollingRouting | SequenceRouting


def linear(in_features: int, out_features: int) -> Linear:
    """Give a map without bias, started as GPT-2 starts its own."""
    return Linear(
        in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.02)
    )


def attention(rotary: RotaryEmbedding) -> Residual:
    """Give self-attention of 12 heads on 4 key and value heads."""
    return Residual(
        norm=RMSNorm(dim=768, eps=1e-5),
        sublayer=SelfAttention(
            q_proj=linear(768, 768),
            k_proj=linear(768, 256),
            v_proj=linear(768, 256),
            o_proj=linear(768, 768),
            num_heads=12,
            num_kv_heads=4,
            rotary=rotary,
            dropout=0.0,
        ),
    )


def think() -> Residual:
    """Give the gated feed-forward network."""
    return Residual(
        norm=RMSNorm(dim=768, eps=1e-5),
        sublayer=SwiGLU(
            gate_proj=linear(768, 2_304), up_proj=linear(768, 2_304), down_proj=linear(2_304, 768)
        ),
    )


def chapters(bank: StandardMemoryBank, *, num_chapters: int, strategy: Strategy) -> Residual:
    """Give the read of 65 chapters: one that all read, and 64 of the router's choice."""
    return Residual(
        norm=RMSNorm(dim=768, eps=1e-5),
        sublayer=RoutedMemoryCrossAttention(
            bank=bank,
            router=ChapterRouter(
                num_chapters=num_chapters,
                num_shared_chapters=1,
                top_k=64,
                routed_scale=2.5,
                scorer=linear(768, num_chapters - 1),
                strategy=strategy,
                losses=[LoadBalanceLoss(weight=0.01), RouterZLoss(weight=0.001)],
            ),
            mixing=JointSoftmax(),
            q_proj=linear(768, 768),
            k_proj=linear(768, 768),
            v_proj=linear(768, 768),
            o_proj=Linear(in_features=768, out_features=768, bias=False, init=Zeros()),
            num_heads=12,
            num_kv_heads=12,
            dropout=0.0,
        ),
    )


def with_memory() -> MemoryTransformer:
    """Compose the stack that reads 262,208 memory tokens: 371,273,472 parameters.

    Memory is read in layers 2, 6, 10 and 14 of 16, counted from 0 as everywhere in memtx, from one
    bank, between attention and MLP (variant A). The paper names the sizes; memory projections as
    wide as the stream make them add up to its 371M (54% of it is the bank).

    The source chooses chapters once from the mean of the whole sequence, so a token reads what
    later tokens chose: in training the model sees its future, and what it generates is another
    model's text. Here each window of 128 tokens chooses from the one before, which is causal, and
    exact in cached generation. Rows of 1,024 tokens have eight windows; the first has nothing
    before it and reads the same chapters in every row. `with_memory_by_sequence` is the source's.

    Built where `torch.device` says: under `with torch.device("meta")` it takes no memory.
    """
    return reading(num_chapters=4_097, strategy=RollingRouting(window=128))


def with_memory_by_sequence() -> MemoryTransformer:
    """Compose the same stack with the source's routing, which is not causal: for comparison."""
    return reading(num_chapters=4_097, strategy=SequenceRouting())


def reading(*, num_chapters: int, strategy: Strategy) -> MemoryTransformer:
    """Compose the stack with a bank of so many chapters of 64 memory tokens."""
    bank = StandardMemoryBank(num_memory_tokens=64 * num_chapters, dim=768, init=Normal(std=1.0))
    embedding = TokenEmbedding(vocab_size=49_152, dim=768, init=Normal(std=0.02))
    rotary = RotaryEmbedding(head_dim=64, max_positions=2_048, base=100_000.0)

    def attend() -> Residual:
        return attention(rotary)

    def recall() -> Residual:
        return chapters(bank, num_chapters=num_chapters, strategy=strategy)

    return MemoryTransformer(
        embedding=embedding,
        banks=[bank],
        layers=[
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), recall(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), recall(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), recall(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), recall(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
        ],
        norm=RMSNorm(dim=768, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )


def control() -> MemoryTransformer:
    """Compose the same stack with eight more layers in place of memory: 202,937,088 parameters.

    At 32 rows of 1,024 tokens both take as much arithmetic: 481 and, with memory, 482 million
    operations a token in the forward. What is read of the bank is projected once for a batch, so
    memory costs 1.16 times the control at 16 rows and 0.86 times at 256 (`forward_flops`).
    """
    embedding = TokenEmbedding(vocab_size=49_152, dim=768, init=Normal(std=0.02))
    rotary = RotaryEmbedding(head_dim=64, max_positions=2_048, base=100_000.0)

    def attend() -> Residual:
        return attention(rotary)

    return MemoryTransformer(
        embedding=embedding,
        banks=[],
        layers=[
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
            MemoryBlock(sublayers=[attend(), think()]),
        ],
        norm=RMSNorm(dim=768, eps=1e-5),
        head=TiedHead(embedding=embedding),
    )
