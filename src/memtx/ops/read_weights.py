"""The attention weights of memory reads: what fused kernels never show.

Shapes are those of `ops.memory_read` and `ops.routed_read`. All weights are float32, and those of a
query and head sum to 1 over all that it reads.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memtx.ops.segments import Segments


def dense_weights(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "memory kv_heads width"],
) -> Float[Tensor, "batch length heads memory"]:
    """Give the weights with which `dense_read` reads each memory token.

    Args:
        query: the queries of each position.
        key: the keys of the memory tokens.
    """
    batch, length, heads, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.float().reshape(batch * length, kv_heads, heads // kv_heads, width)
    # Autocast would round the scores.
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.einsum("pkgw,mkw->pkgm", grouped, key.float()) / width**0.5
    return torch.softmax(scores, dim=-1).reshape(batch, length, heads, -1)


def joint_weights(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"],
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
) -> Float[Tensor, "batch length heads chosen tokens"]:
    """Give the weights with which `joint_read` reads the tokens of each chosen chapter.

    The weight of a chapter is in them, as a factor before the one softmax divides by the sum.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        choice: which chapters each segment reads.
        log_weight: logarithms of their weights.
        segments: which segment each token belongs to. Padding reads nothing.
    """
    scores = _chosen_scores(query, key, choice, segments)
    scores = scores + _of_tokens(log_weight.float(), segments)[:, :, None, :, None]
    weights = torch.softmax(scores.flatten(-2), dim=-1).view_as(scores)
    return weights * segments.real[:, :, None, None, None]


def independent_weights(
    query: Float[Tensor, "batch length heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    choice: Int[Tensor, "batch segments chosen"],
    log_weight: Float[Tensor, "batch segments chosen"],
    segments: Segments,
) -> Float[Tensor, "batch length heads chosen tokens"]:
    """Give the weights with which `independent_read` reads the tokens of each chosen chapter.

    Each chapter's softmax sums to 1 and is multiplied by the chapter's weight.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        choice: which chapters each segment reads.
        log_weight: logarithms of their weights.
        segments: which segment each token belongs to. Padding reads nothing.
    """
    share = torch.softmax(_chosen_scores(query, key, choice, segments), dim=-1)
    weights = share * _of_tokens(log_weight.float().exp(), segments)[:, :, None, :, None]
    return weights * segments.real[:, :, None, None, None]


def _of_tokens(values: Tensor, segments: Segments) -> Tensor:
    """Give each token the values of its segment, `[batch, length, ...]`."""
    index = segments.segment[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)


def _chosen_scores(query: Tensor, key: Tensor, choice: Tensor, segments: Segments) -> Tensor:
    """Give the scores of each token for the tokens of its chapters, without their weights."""
    batch, length, heads, width = query.shape
    kv_heads = key.shape[2]
    grouped = query.float().reshape(batch, length, kv_heads, heads // kv_heads, width)
    keys = key.float()[_of_tokens(choice, segments)]
    with torch.autocast(query.device.type, enabled=False):
        scores: Tensor = torch.einsum("blkgw,blctkw->blkgct", grouped, keys) / width**0.5
    return scores.flatten(2, 3)
