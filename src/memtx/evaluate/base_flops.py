"""What a Hugging Face model asks for, from its modules and their sizes."""

from collections.abc import Callable
from typing import Any

from torch import nn

from memtx.adapters.families import decoder_layers, family_of, inner_model, is_peft
from memtx.adapters.insertion import Insertion, Site
from memtx.checks import refusal
from memtx.evaluate.part_flops import mapped_by_torch
from memtx.evaluate.work import NOTHING, Call, Tally, Work, attended, product

# What a branch ends with, by its names in the supported families: it reads what the others give.
LAST = {"o_proj", "dense", "out_proj", "c_proj", "down_proj", "dense_4h_to_h", "experts"}
Walk = Callable[[nn.Module, Call, Tally], Call]


def is_base(part: Any) -> bool:
    """Tell whether a part is a causal language model of transformers, or a PEFT model of one.

    Args:
        part: any module.
    """
    return is_peft(part) or hasattr(part, "get_output_embeddings")


def walk_base(
    base: Any, *, insertions: list[Insertion], call: Call, tally: Tally, walk: Walk
) -> None:
    """Count a base and what is inserted into it, in the order of the stream.

    Args:
        base: the model.
        insertions: sub-layers between its branches.
        call: what it is called with.
        tally: takes the work.
        walk: counts an insertion, and gives the call of what follows.
    """
    model: Any = inner_model(base)
    here = call.after([model.get_input_embeddings()])
    placed = {(each.layer, each.site): each for each in insertions}
    top_k = int(getattr(model.config, "num_experts_per_tok", 0) or 0)
    flag = family_of(base).parallel_flag
    parallel = flag is not None and bool(getattr(model.config, flag))
    for number, layer in enumerate(decoder_layers(base)):
        entry, attentions, others = here, _attentions(layer), _others(layer)
        _add(attentions, call=here, tally=tally, top_k=top_k)
        here = here.after(attentions)
        if (number, Site.AFTER_ATTENTION) in placed:
            here = walk(placed[number, Site.AFTER_ATTENTION], here, tally)
        # Side by side, the MLP reads what the attention reads.
        _add(others, call=entry if parallel else here, tally=tally, top_k=top_k)
        here = here.after(others)
        if (number, Site.AFTER_MLP) in placed:
            here = walk(placed[number, Site.AFTER_MLP], here, tally)
    head = model.get_output_embeddings()
    tally.add(type(head).__name__, _leaf(head, call=here, top_k=top_k))


def _add(parts: list[nn.Module], *, call: Call, tally: Tally, top_k: int) -> None:
    for part in parts:
        tally.add(type(part).__name__, _branch(part, call=call, top_k=top_k))


def _is_attention(part: nn.Module) -> bool:
    return "attention" in type(part).__name__.lower()


def _attentions(layer: nn.Module) -> list[nn.Module]:
    return [part for part in layer.children() if _is_attention(part)]


def _others(layer: nn.Module) -> list[nn.Module]:
    return [part for part in layer.children() if not _is_attention(part)]


def _branch(part: nn.Module, *, call: Call, top_k: int) -> Work:
    """Count an attention or an MLP: maps side by side, and one that reads what they give."""
    maps = dict(_maps(part))
    last = next((name for name in maps if name.rpartition(".")[2] in LAST), None)
    inner = [each for name, each in maps.items() if name != last]
    work = NOTHING
    for each in inner:
        work += _leaf(each, call=call, top_k=top_k)
    behind = call.after(inner)
    if last is not None:
        work += _leaf(maps[last], call=behind, top_k=top_k)
    if _is_attention(part) and last is not None:
        work += attended(
            queries=call.tokens,
            keys=call.length,
            width=int(maps[last].in_features),  # type: ignore[arg-type]
            live=(behind.live,) * 3,
        )
    return work


def _maps(part: nn.Module) -> list[tuple[str, nn.Module]]:
    """Give the maps of a branch by name, those that PEFT has wrapped as a whole."""
    found: list[tuple[str, nn.Module]] = []
    for name, each in part.named_children():
        own = any(p.ndim > 1 for p in each.parameters(recurse=False))
        if own or isinstance(each, nn.Linear) or hasattr(each, "base_layer"):
            found.append((name, each))
        else:
            found += [(f"{name}.{inner}", leaf) for inner, leaf in _maps(each)]
    own = any(p.ndim > 1 for p in part.parameters(recurse=False))
    return [("", part)] if own and not found else found


def _leaf(part: Any, *, call: Call, top_k: int) -> Work:
    """Count one map: torch's, one that PEFT wrapped, a matrix by itself, or experts."""
    if hasattr(part, "base_layer"):
        return _with_lora(part, call=call, top_k=top_k)
    if isinstance(part, nn.Linear):
        return mapped_by_torch(part, call)
    matrices = [p for p in part.parameters(recurse=False) if p.ndim > 1]
    work = NOTHING
    for matrix in matrices:
        if matrix.ndim == 2 and len(matrices) == 1:
            each = 2 * call.tokens * matrix.numel()
        elif matrix.ndim == 3 and top_k:
            # Of the experts of a token only those that it chose.
            each = 2 * call.tokens * top_k * matrix[0].numel()
        else:
            raise ValueError(
                refusal(
                    owner="forward_flops",
                    rule="a module of the base must hold one matrix, or experts that tokens choose",
                    got={"module": type(part).__name__, "shape": tuple(matrix.shape)},
                    remedy="count it by torch.utils.flop_counter.FlopCounterMode",
                )
            )
        work += product(each, gradients=matrix.requires_grad + call.live)
        # The second matrix of an expert reads what the first gives.
        call = call.after([part]) if matrix.requires_grad else call
    return work


def _with_lora(part: Any, *, call: Call, top_k: int) -> Work:
    work = _leaf(part.base_layer, call=call, top_k=top_k)
    for name in part.active_adapters:
        if name in part.lora_A:
            down, up = part.lora_A[name], part.lora_B[name]
            work += mapped_by_torch(down, call) + mapped_by_torch(up, call.after([down]))
    return work
