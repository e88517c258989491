"""Reading a whole memory by attention: every query sees every memory token."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from memtx.ops.tensor_products import product

MANY_QUERIES = 1_024  # of a batch
FEW_SCORES = 2**24


def dense_read_reference(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "memory kv_heads width"],
    value: Float[Tensor, "memory kv_heads width"],
) -> Float[Tensor, "batch length heads width"]:
    """Read the memory head by head with matrix products: the definition.

    Args:
        query: the queries of each position.
        key: the keys of the memory tokens, the same for every sequence.
        value: their values. Head `h` of the query reads head `h // (heads / kv_heads)`.
    """
    heads, width = query.shape[-2:]
    group = heads // key.shape[1]
    outputs = []
    for head in range(heads):
        scores = query[..., head, :] @ key[:, head // group].T / width**0.5
        outputs.append(torch.softmax(scores, dim=-1) @ value[:, head // group])
    return torch.stack(outputs, dim=-2)


def dense_read(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "memory kv_heads width"],
    value: Float[Tensor, "memory kv_heads width"],
    dropout: float,
) -> Float[Tensor, "batch length heads width"]:
    """Read the memory by one fused attention over all positions of the batch.

    Nothing of a memory read depends on the order of the queries, so the batch and the positions
    fold into one query axis against a single copy of keys and values: at 65k memory tokens that
    takes a quarter of the memory of repeating them.

    Where a GPU has many queries, heads stay apart, since the backward of its kernels spreads over
    them: on an H200, 8,192 queries of 12 heads on 2 against 2,048 tokens take 1.1 ms forward and
    backward, and 2.4 ms folded. Neither on a CPU nor in float32 does a fused kernel take heads in
    groups. A few queries of generation leave its fused kernels with too little to do at once: there
    matrix products read, whose scores are small.

    Args:
        query: the queries of each position.
        key: the keys of the memory tokens, the same for every sequence.
        value: their values.
        dropout: probability of dropping an attention weight.
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        if query.shape[0] * query.shape[1] >= MANY_QUERIES:
            return read_by_heads(query, key, value, dropout)
        scores = query.shape[:3].numel() * key.shape[0]
        if scores <= FEW_SCORES and dropout == 0.0 and not torch.is_grad_enabled():
            return read_by_products(query, key, value)
    return read_folded(query, key, value, dropout)


def read_by_products(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "memory kv_heads width"],
    value: Float[Tensor, "memory kv_heads width"],
) -> Float[Tensor, "batch length heads width"]:
    """Read with all scores at once, in float32: `batch length heads memory` of them.

    Args:
        query: the queries of each position.
        key: the keys of the memory tokens.
        value: their values.
    """
    batch, length, heads, width = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(batch * length, kv_heads, -1, width).transpose(0, 1).flatten(1, 2)
    scores = product(folded, key.permute(1, 2, 0), torch.float32) / width**0.5
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    read = (weights @ value.transpose(0, 1)).unflatten(1, (batch * length, -1))
    laid: Tensor = read.transpose(0, 1).reshape(batch, length, heads, width)
    return laid


def read_by_heads(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "memory kv_heads width"],
    value: Float[Tensor, "memory kv_heads width"],
    dropout: float,
) -> Float[Tensor, "batch length heads width"]:
    """Read with all positions of the batch in one query axis.

    Args:
        query: the queries of each position.
        key: the keys of the memory tokens.
        value: their values.
        dropout: probability of dropping an attention weight.
    """
    batch, length, heads, width = query.shape
    read = F.scaled_dot_product_attention(
        query.reshape(1, batch * length, heads, width).transpose(1, 2),
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        dropout_p=dropout,
        enable_gqa=heads != key.shape[1],
    )
    return read.transpose(1, 2).reshape(batch, length, heads, width)


def read_folded(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "memory kv_heads width"],
    value: Float[Tensor, "memory kv_heads width"],
    dropout: float,
) -> Float[Tensor, "batch length heads width"]:
    """Read with all positions of the batch, and the heads of a group, in one query axis.

    Args:
        query: the queries of each position.
        key: the keys of the memory tokens.
        value: their values.
        dropout: probability of dropping an attention weight.
    """
    batch, length, heads, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    folded = query.reshape(batch * length, kv_heads, group, width).permute(1, 2, 0, 3)
    read = F.scaled_dot_product_attention(
        folded.reshape(1, kv_heads, group * batch * length, width),
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        dropout_p=dropout,
    )
    unfolded = read.reshape(kv_heads, group, batch * length, width).permute(2, 0, 1, 3)
    return unfolded.reshape(batch, length, heads, width)
