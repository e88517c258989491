"""What a step cannot do without: operations of training, and bytes that a generated token reads."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from memtx import MemoryCrossAttention, RoutedMemoryCrossAttention
from memtx.evaluate import training_flops

MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
READERS = (MemoryCrossAttention, RoutedMemoryCrossAttention)


def attentions(model: nn.Module) -> Iterator[Any]:
    """Give the parts in which the text attends to itself."""
    for part in model.modules():
        if not isinstance(part, READERS) and all(hasattr(part, name) for name in MAPS):
            yield part


def operations_of_step(model: nn.Module, *, batch: int, length: int) -> float:
    """Count the operations of a training step in products and attention.

    Of the pairs of tokens of a row, which `training_flops` counts all, a causal attention needs
    half, in the forward and twice that in the backward.
    """
    whole = training_flops(model=model, batch=batch, length=length).total
    half = sum(2.0 * batch * length**2 * part.q_proj.out_features for part in attentions(model))
    return whole - 3.0 * half


def update_bytes(model: nn.Module) -> float:
    """Count the bytes of an AdamW update: weight and two moments in and out, and the gradient."""
    return 7.0 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def read_by_token(model: nn.Module, *, batch: int, text: int) -> dict[str, float]:
    """Count the bytes that decoding one token for each row reads, with frozen memories.

    A weight is read once for all rows; embeddings are tied to the head. Of a routed memory each row
    reads its own chapters, together no more than there are; what scores chapters works once for
    many tokens and is left out. `text` is how many tokens each row has in its cache.
    """
    readers = [part for part in model.modules() if isinstance(part, READERS)]
    unread: set[nn.Parameter] = set()
    memory = 0.0
    for reader in readers:
        if reader.frozen is None:
            raise ValueError("the floor of a token is that of a frozen memory")
        share = 1.0
        unread |= {p for of in (reader.bank, reader.k_proj, reader.v_proj) for p in of.parameters()}
        if isinstance(reader, RoutedMemoryCrossAttention):
            router = reader.router
            unread |= set(router.scorer.parameters())
            chosen = router.num_shared_chapters + router.top_k * batch
            share = min(1.0, chosen / router.num_chapters)
        memory += share * reader.frozen.nbytes
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p not in unread)
    cache = sum(
        float(batch * text * (part.k_proj.out_features + part.v_proj.out_features))
        * next(part.k_proj.parameters()).element_size()
        for part in attentions(model)
    )
    return {"weights": float(weights), "memory": memory, "text": cache}
