"""Small parts that many tests put together."""

import torch
from torch import nn

from memtx import (
    Linear,
    MemoryCrossAttention,
    Normal,
    Residual,
    RMSNorm,
    StandardMemoryBank,
    SwiGLU,
    Zeros,
)


def linear(in_features, out_features):
    return Linear(
        in_features=in_features, out_features=out_features, bias=False, init=Normal(std=0.3)
    )


def zero_linear(in_features, out_features):
    return Linear(in_features=in_features, out_features=out_features, bias=False, init=Zeros())


def bank_of(num_memory_tokens, dim):
    return StandardMemoryBank(num_memory_tokens=num_memory_tokens, dim=dim, init=Normal(std=1.0))


def read_arguments(dim):
    """The arguments of a sound reader of width `dim`, to be used whole or with one changed."""
    return {
        "bank": bank_of(7, dim),
        "q_proj": linear(dim, dim),
        "k_proj": linear(dim, dim // 2),
        "v_proj": linear(dim, dim // 2),
        "o_proj": zero_linear(dim, dim),
        "num_heads": 4,
        "num_kv_heads": 2,
        "dropout": 0.0,
    }


def reader(bank, dim):
    return MemoryCrossAttention(**(read_arguments(dim) | {"bank": bank}))


def recall(bank, dim):
    return Residual(norm=RMSNorm(dim=dim, eps=1e-5), sublayer=reader(bank, dim))


def mlp(dim):
    return SwiGLU(
        gate_proj=linear(dim, 2 * dim),
        up_proj=linear(dim, 2 * dim),
        down_proj=zero_linear(2 * dim, dim),
    )


def think(dim):
    return Residual(norm=RMSNorm(dim=dim, eps=1e-5), sublayer=mlp(dim))


@torch.no_grad()
def randomize(parameters):
    """Leave every zero start behind, so that a part does something."""
    for parameter in parameters:
        parameter.normal_(0.0, 0.3)


@torch.no_grad()
def randomize_buffers(part: nn.Module):
    """The same for what a part holds beside its parameters: codes and their scales."""
    for buffer in part.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
        else:
            buffer.random_(0, 256)


def random_like(part: nn.Module):
    """The same part with random parameters."""
    randomize(part.parameters())
    return part
