"""How much arithmetic a model asks for, counted from its parts and their sizes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from memtx.adapters import MemoryAdapter
from memtx.adapters.insertion import Insertion
from memtx.checks import require, require_positive
from memtx.evaluate.base_flops import is_base, walk_base
from memtx.evaluate.part_flops import COSTS, FREE
from memtx.evaluate.work import Call, Tally
from memtx.models import MemoryTransformer, TensorMemoryLM


@final
@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """Floating-point operations of one forward, by the parts that ask for them.

    Args:
        num_tokens: tokens of the forward.
        by_part: operations by class name, such as `SelfAttention`.

    Source: the usual count, two operations for each multiplication of a matrix product.

    Example:
        >>> flops = ForwardFlops(num_tokens=4, by_part={"SwiGLU": 96, "TiedHead": 64})
        >>> flops.total, flops.per_token
        (160, 40.0)
    """

    num_tokens: int
    by_part: dict[str, int]

    @property
    def total(self) -> int:
        """Operations of the whole forward."""
        return sum(self.by_part.values())

    @property
    def per_token(self) -> float:
        """Operations for each token; `training_flops` counts the backward as well."""
        return self.total / self.num_tokens


@final
@dataclass(frozen=True, kw_only=True)
class TrainingFlops:
    """Floating-point operations of one forward and the backward through it.

    Args:
        num_tokens: tokens of the forward.
        forward: operations of the forward by class name.
        backward: operations of the backward by class name.

    Source: the usual count, as in PaLM's model FLOPs utilisation (arXiv 2204.02311, appendix B).

    Example:
        >>> flops = TrainingFlops(num_tokens=4, forward={"SwiGLU": 96}, backward={"SwiGLU": 192})
        >>> flops.total, flops.per_token
        (288, 72.0)
    """

    num_tokens: int
    forward: dict[str, int]
    backward: dict[str, int]

    @property
    def total(self) -> int:
        """Operations of both."""
        return sum(self.forward.values()) + sum(self.backward.values())

    @property
    def per_token(self) -> float:
        """Operations for each token."""
        return self.total / self.num_tokens


def forward_flops(*, model: nn.Module, batch: int, length: int) -> ForwardFlops:
    """Count the matrix products of one forward over whole rows, logits of all tokens included.

    Nothing is run, so a model on the meta device can be counted. As torch's `FlopCounterMode` does,
    causal attention is counted over all pairs of tokens, and norms, softmaxes, activations and
    look-ups not at all.

    What a memory reads is projected once for a forward, whatever the batch: per token it costs less
    the more tokens there are. Of a routed bank the most chapters are counted that the segments of
    the batch can choose; when several choose the same one, less is projected. A tensor memory is
    counted by its recurrence; computed chunk by chunk it takes more. Of a mixture of experts a
    token is counted through the experts that it chooses.

    Args:
        model: a `MemoryTransformer`, a `TensorMemoryLM`, a `MemoryAdapter`, a Hugging Face model
            of a supported family (or a PEFT model of one), a block or a sub-layer.
        batch: number of rows.
        length: tokens of a row.

    Raises:
        ValueError: if a size is below 1, or a part is of a class that is not counted.
    """
    tally = _tally(model, owner="forward_flops", batch=batch, length=length)
    return ForwardFlops(num_tokens=batch * length, by_part=dict(tally.forward))


def training_flops(*, model: nn.Module, batch: int, length: int) -> TrainingFlops:
    """Count the matrix products of one forward and backward over whole rows.

    A product costs as much again for each of its two sides that needs a gradient: a model trained
    as a whole takes twice its forward in the backward. A frozen weight needs none, and below the
    lowest layer that is trained or reads a memory nothing does. The forward is that of
    `forward_flops`; what activation checkpointing computes twice is counted once.

    Args:
        model: as for `forward_flops`; its parameters' `requires_grad` say what is trained.
        batch: number of rows.
        length: tokens of a row.

    Raises:
        ValueError: if a size is below 1, or a part is of a class that is not counted.
    """
    tally = _tally(model, owner="training_flops", batch=batch, length=length)
    forward, backward = dict(tally.forward), dict(tally.backward)
    return TrainingFlops(num_tokens=batch * length, forward=forward, backward=backward)


def _tally(model: nn.Module, *, owner: str, batch: int, length: int) -> Tally:
    require_positive(owner=owner, sizes={"batch": batch, "length": length})
    tally = Tally(forward=Counter(), backward=Counter())
    # A part by itself stands in a model that is trained below it.
    call = Call(batch=batch, length=length, live=not _is_whole(model))
    _walk(model, call, tally)
    return tally


def _is_whole(model: nn.Module) -> bool:
    return isinstance(model, MemoryTransformer | TensorMemoryLM | MemoryAdapter) or is_base(model)


def _walk(part: Any, call: Call, tally: Tally) -> Call:
    """Count a part, and give the call of what reads its output."""
    if isinstance(part, MemoryAdapter):
        placed: list[Insertion] = list(part.insertions)  # type: ignore[arg-type]
        walk_base(part.base, insertions=placed, call=call, tally=tally, walk=_walk)
        return call
    if isinstance(part, MemoryTransformer | TensorMemoryLM):
        # Embedding and banks cost nothing by themselves; who reads a bank pays for it.
        inside, call = [*part.layers, part.norm, part.head], call.after([part.embedding])
    elif isinstance(part, FREE):
        return call.after([part])
    elif type(part) in COSTS:
        tally.add(type(part).__name__, COSTS[type(part)](part, call))
        return call.after([part])
    elif is_base(part):
        walk_base(part, insertions=[], call=call, tally=tally, walk=_walk)
        return call
    else:
        # Not `children()`, which would give a part that stands twice once.
        inside = [each for each in part._modules.values() if each is not None]
        own = [name for name, _ in part.named_parameters(recurse=False)]
        require(
            ok=not own,
            owner="forward_flops",
            rule=f"every part must be one of {', '.join(sorted({c.__name__ for c in COSTS}))}, "
            "or made of these",
            got={"part": type(part).__name__},
            remedy="count it by torch.utils.flop_counter.FlopCounterMode",
        )
    for each in inside:
        call = _walk(each, call, tally)
    return call
