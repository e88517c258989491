"""Reading the chosen chapters of a memory where they lie, one token to a row, as in decoding.

Laying the chapters of each row side by side copies them before they are read. A chapter is a page:
FlexAttention takes the numbers of the pages that each row reads and goes to no others, if it is
compiled; not compiled it goes over the whole memory, to the same result.

The read is an operator of its own, compiled by itself. In the graph of a whole model torch 2.13
gives wrong results without an error: on a CPU it reads what raises the scores before it is there,
and while tracing FlexAttention it forgets which attributes were set before.
"""

from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, library

from memtx.ops.segments import Segments

# Where this was measured to be faster than copying (`benchmarks/page_read.py`).
FASTER_ON = ("cpu",)
# Elements of keys that would be copied: with fewer, compiling the read is not worth its while.
MANY_COPIED = 2**20
# Queries that share pages in the mask: a block of them, of which one token is all there is.
_QUERIES = 128


def reads_pages(query: Tensor, key: Tensor, log_weight: Tensor, segments: Segments) -> bool:
    """Tell whether pages are the way to read: compiled decoding from more chapters than are read.

    Args:
        query: the queries of each token.
        key: the keys of the chapters.
        log_weight: logarithms of the weights of the chosen chapters.
        segments: which segment each token belongs to.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and query.device.type in FASTER_ON
        # In narrower dtypes its kernel for CPUs may pack the whole memory at every call.
        and (query.is_cuda or query.dtype == torch.float32)
        and query.dtype == key.dtype
        and segments.count == 1
        and segments.width == 1
        and key.shape[0] > log_weight.shape[-1]
        and log_weight.numel() * key[0].numel() >= MANY_COPIED
    )


@library.custom_op("memtx::page_read", mutates_args=())
def page_read(
    query: Tensor, key: Tensor, value: Tensor, choice: Tensor, log_weight: Tensor
) -> Tensor:
    """Read by one softmax over all chosen chapters, each score raised by `log_weight`.

    Equal to `joint_read_reference` with one token to a row; it has no gradient.

    Args:
        query: the queries of each row's token, `[batch, 1, heads, width]`.
        key: the keys of the chapters, `[chapters, tokens, kv_heads, width]`.
        value: their values.
        choice: which chapters each row reads, `[batch, 1, chosen]`.
        log_weight: logarithms of their weights, in float32.
    """
    given = pages(choice[:, 0], log_weight[:, 0].float(), key.shape[0])
    return cast("Tensor", _compiled()(query, key, value, *given)).contiguous()


@page_read.register_fake
def _(
    query: Tensor,
    key: Tensor,  # noqa: ARG001
    value: Tensor,  # noqa: ARG001
    choice: Tensor,  # noqa: ARG001
    log_weight: Tensor,  # noqa: ARG001
) -> Tensor:
    return query.new_empty(query.shape)


def pages(
    choice: Int[Tensor, "batch chosen"], log_weight: Float[Tensor, "batch chosen"], chapters: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give how many pages each row reads, their numbers, and what raises the scores of each page.

    The first two in int32 as a `BlockMask` takes them, `[batch, 1, 1]` and
    `[batch, 1, 1, chapters]`; the last `[batch, chapters]`, minus infinity where a row does not
    read.

    Args:
        choice: the pages of each row.
        log_weight: logarithms of their weights, in float32.
        chapters: how many pages there are.
    """
    batch, chosen = choice.shape
    counts = torch.full((batch, 1, 1), chosen, dtype=torch.int32, device=choice.device)
    numbers = torch.zeros(batch, 1, 1, chapters, dtype=torch.int32, device=choice.device)
    numbers[:, 0, 0, :chosen] = choice
    raised = log_weight.new_full((batch, chapters), -torch.inf).scatter_(1, choice, log_weight)
    return counts, numbers, raised


@cache
def _compiled() -> Any:
    return torch.compile(attend, dynamic=False)


def attend(
    query: Float[Tensor, "batch 1 heads width"],
    key: Float[Tensor, "chapters tokens kv_heads width"],
    value: Float[Tensor, "chapters tokens kv_heads width"],
    counts: Int[Tensor, "batch 1 1"],
    numbers: Int[Tensor, "batch 1 1 chapters"],
    raised: Float[Tensor, "batch chapters"],
) -> Float[Tensor, "batch 1 heads width"]:
    """Attend to the pages of each row, as `pages` gives them.

    Args:
        query: the queries of each row's token.
        key: the keys of the chapters.
        value: their values.
        counts: how many pages each row reads.
        numbers: which.
        raised: what is added to the scores of each page.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    chapters, tokens = key.shape[:2]

    def raise_score(
        score: Tensor, row: Tensor, head: Tensor, place: Tensor, token: Tensor
    ) -> Tensor:
        del head, place
        return score + raised[row, token // tokens]

    mask = BlockMask.from_kv_blocks(
        counts,
        numbers,
        BLOCK_SIZE=(_QUERIES, tokens),
        seq_lengths=(1, chapters * tokens),
        compute_q_blocks=False,
    )
    read: Any = flex_attention(
        query.transpose(1, 2),
        key.flatten(0, 1).transpose(0, 1)[None],
        value.flatten(0, 1).transpose(0, 1)[None],
        score_mod=raise_score,
        block_mask=mask,
        enable_gqa=True,
    )
    return cast("Tensor", read.transpose(1, 2))
