"""What memory does to what a model says: chapter by chapter, and on against off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.adapters import MemoryAdapter
from memtx.checks import require
from memtx.data import Fact, fact_tokens
from memtx.modes import evaluating
from memtx.usage.recording import readers_of
from memtx.usage.removal import without_chapters


@final
@dataclass(frozen=True, kw_only=True)
class ChapterEffect:
    """What an answer loses without a chapter.

    Args:
        chapter: its number.
        log_probability: of the whole answer without it, in nats.
        change: that, less the log-probability with all chapters: below 0 where the chapter helps.

    Source: ablation, as of attention heads (Michel et al. 2019, arXiv 1905.10650).

    Example:
        >>> ChapterEffect(chapter=3, log_probability=-9.0, change=-8.5).change
        -8.5
    """

    chapter: int
    log_probability: float
    change: float


@torch.no_grad()
def answer_log_probability(*, model: Any, tokenizer: Any, fact: Fact) -> float:
    """Give the log-probability, in nats, of an answer after its prompt.

    Args:
        model: a Hugging Face causal language model, a `MemoryAdapter` or a whole model.
        tokenizer: its tokenizer.
        fact: prompt and answer.
    """
    prompt, answer = fact_tokens(tokenizer, fact)
    ids = torch.tensor([prompt + answer], device=model.device)
    with evaluating(model):
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    logs = torch.log_softmax(logits.double(), dim=-1)
    return float(logs.gather(-1, ids[0, len(prompt) :, None]).sum())


def chapter_effects(
    *,
    model: Any,
    tokenizer: Any,
    fact: Fact,
    bank: nn.Module,
    chapters: Sequence[int],
    tokens_per_chapter: int,
) -> list[ChapterEffect]:
    """Ask for an answer once with all chapters, and once without each of some.

    Args:
        model: a `MemoryAdapter` or a `MemoryTransformer`.
        tokenizer: its tokenizer.
        fact: prompt and answer.
        bank: the bank that the chapters are in.
        chapters: their numbers; one call of the model each.
        tokens_per_chapter: memory tokens of a chapter.

    Raises:
        ValueError: as `delete_chapters`.
    """
    whole = answer_log_probability(model=model, tokenizer=tokenizer, fact=fact)
    effects = []
    for chapter in chapters:
        with without_chapters(
            model, bank=bank, chapters=[chapter], tokens_per_chapter=tokens_per_chapter
        ):
            found = answer_log_probability(model=model, tokenizer=tokenizer, fact=fact)
        effects.append(ChapterEffect(chapter=chapter, log_probability=found, change=found - whole))
    return effects


@contextmanager
def memory_off(model: nn.Module) -> Iterator[None]:
    """Switch memory off inside a `with` block.

    An adapter answers as its base; in any other model each memory reader gives zeros.

    Args:
        model: a `MemoryAdapter`, a `MemoryTransformer`, or any module with readers in it.

    Raises:
        ValueError: if there is no memory reader.
    """
    readers = readers_of(model, owner="memory_off")
    if isinstance(model, MemoryAdapter):
        with model.disabled():
            yield
        return
    handles = [part.register_forward_hook(_nothing) for part in readers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nothing(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001
    return torch.zeros_like(output)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The next-token distributions of a text with memory and without.

    Args:
        on: the likeliest tokens with memory, the likeliest first.
        on_probabilities: their probabilities.
        off: the likeliest tokens without memory.
        off_probabilities: their probabilities.
        next_on: probability, with memory, of the token that comes next in the text.
        next_off: the same without memory.
        divergence: `KL(on || off)` of the whole distributions, in nats.

    Shapes:
        the first four `[length, top]`; `next_on` and `next_off` `[length - 1]`, `divergence`
        `[length]`; all on the CPU.

    Source: memtx's own.

    Example:
        >>> Comparison.__name__  # made by compare_next_tokens
        'Comparison'
    """

    on: Int[Tensor, "length top"]
    on_probabilities: Float[Tensor, "length top"]
    off: Int[Tensor, "length top"]
    off_probabilities: Float[Tensor, "length top"]
    next_on: Float[Tensor, " following"]
    next_off: Float[Tensor, " following"]
    divergence: Float[Tensor, " length"]


@torch.no_grad()
def compare_next_tokens(model: Any, ids: Tensor, *, top: int) -> Comparison:
    """Compare what comes next with memory and without, at every token of a text.

    Args:
        model: a `MemoryAdapter` or a `MemoryTransformer`.
        ids: the token ids, `[length]`.
        top: how many of the likeliest tokens to keep.

    Raises:
        ValueError: if the text has no token, or the model no memory reader.
    """
    require(
        ok=ids.ndim == 1 and len(ids) > 0,
        owner="compare_next_tokens",
        rule="ids must be the tokens of one text, at least one",
        got={"shape": tuple(ids.shape)},
        remedy="pass a tensor [length]",
    )
    row = ids[None].to(model.device)
    with evaluating(model):
        on = torch.log_softmax(model(input_ids=row).logits[0].float(), dim=-1)
        with memory_off(model):
            off = torch.log_softmax(model(input_ids=row).logits[0].float(), dim=-1)
    following = row[0, 1:, None]
    best_on, best_off = on.topk(min(top, on.shape[-1])), off.topk(min(top, on.shape[-1]))
    return Comparison(
        on=best_on.indices.cpu(),
        on_probabilities=best_on.values.exp().cpu(),
        off=best_off.indices.cpu(),
        off_probabilities=best_off.values.exp().cpu(),
        next_on=on[:-1].gather(-1, following)[:, 0].exp().cpu(),
        next_off=off[:-1].gather(-1, following)[:, 0].exp().cpu(),
        divergence=(on.exp() * (on - off)).sum(dim=-1).clamp(min=0.0).cpu(),
    )
