"""What a memory token says: in words of the vocabulary, and in the texts that read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memtx.adapters.families import inner_model
from memtx.checks import require
from memtx.memory.owned import rows_for
from memtx.modes import evaluating
from memtx.usage.recording import readers_of, record_reads


@final
@dataclass(frozen=True, kw_only=True)
class NearTokens:
    """Tokens of the vocabulary that are near to a memory token, the nearest first.

    Args:
        memory_token: number of the memory token.
        ids: the tokens of the vocabulary.
        scores: how near each is.

    Source: the logit lens (nostalgebraist 2020) and key-value memories read in the vocabulary
    (Geva et al. 2022, arXiv 2203.14680).

    Example:
        >>> NearTokens(memory_token=0, ids=[7, 2], scores=[3.5, 1.0]).ids[0]
        7
    """

    memory_token: int
    ids: list[int]
    scores: list[float]


@final
@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A place of a text that reads a memory token.

    Args:
        weight: with what weight, a mean over heads.
        text: number of the text.
        position: place of the token that reads, among the text's tokens.
        before: what stands before it.
        token: the token that reads.
        after: what stands behind it.

    Source: the examples of largest activation, as they are shown of neurons.

    Example:
        >>> Snippet(weight=0.5, text=0, position=2, before="The ", token="cat", after=" sat").token
        'cat'
    """

    weight: float
    text: int
    position: int
    before: str
    token: str
    after: str


@torch.no_grad()
def written_tokens(
    model: Any, *, reader: str, memory_tokens: Sequence[int], num: int
) -> list[NearTokens]:
    """Give the tokens of the vocabulary that a memory token makes likelier where it is read.

    What a query that reads nothing else would add to the stream (through `v_proj` and `o_proj`)
    goes through the model's final norm and head. That is the direct way: what later layers make of
    it is left out, so early readers are told less of than late ones.

    Args:
        model: a `MemoryAdapter` or a `MemoryTransformer`.
        reader: name of the reader in the model, as in a recording.
        memory_tokens: which memory tokens.
        num: how many tokens of the vocabulary to give; the scores are logits.

    Raises:
        ValueError: if there is no such reader or memory token.
    """
    part = _reader(model, reader, memory_tokens, owner="written_tokens")
    with evaluating(model):
        rows = rows_for(part.bank, _numbers(memory_tokens, part))
        value = part.v_proj(rows).unflatten(-1, (part.num_kv_heads, -1))
        heads = value.repeat_interleave(part.num_heads // part.num_kv_heads, dim=-2)
        added = part.o_proj(heads.flatten(-2))
        head, norm = _ending(model)
        weight = next(head.parameters())
        scores = head(norm(added.to(weight)))
    return _largest(scores, memory_tokens, num=num)


@torch.no_grad()
def alike_tokens(
    model: Any, *, bank: Any, memory_tokens: Sequence[int], num: int
) -> list[NearTokens]:
    """Give the tokens of the vocabulary whose embeddings point the way of a memory token.

    This is about the numbers of the bank alone: it tells something where they started from
    embeddings (`FromRows`), or were made to be read like them.

    Args:
        model: a `MemoryAdapter` or a `MemoryTransformer`.
        bank: the bank, such as `model.banks[0]`.
        memory_tokens: which memory tokens.
        num: how many tokens of the vocabulary to give; the scores are cosines.

    Raises:
        ValueError: if the bank has another width than the embedding, or there is no such token.
    """
    embedding = _embedding(model)
    require(
        ok=bank.dim == embedding.shape[1],
        owner="alike_tokens",
        rule="the bank must have the width of the token embedding",
        got={"bank.dim": bank.dim, "embedding": embedding.shape[1]},
        remedy="use written_tokens, which goes through the reader's own maps",
    )
    _check_tokens(bank, memory_tokens, owner="alike_tokens")
    numbers = torch.tensor(list(memory_tokens), device=embedding.device)
    rows = F.normalize(rows_for(bank, numbers).float(), dim=-1)
    scores = rows @ F.normalize(embedding.float(), dim=-1).T
    return _largest(scores, memory_tokens, num=num)


@torch.no_grad()
def snippets(
    model: Any,
    *,
    tokenizer: Any,
    texts: Sequence[str],
    reader: str,
    memory_token: int,
    num: int,
    around: int,
    max_length: int,
) -> list[Snippet]:
    """Give the places of texts that read a memory token most, the first of largest weight.

    With the texts of the training this shows what the memory token was written for.

    Args:
        model: a `MemoryAdapter` or a `MemoryTransformer`.
        tokenizer: its tokenizer.
        texts: the texts; each is read by itself.
        reader: name of the reader in the model, as in a recording.
        memory_token: number of the memory token.
        num: how many places to give.
        around: how many tokens to show before and behind.
        max_length: tokens of a text that are read; the rest is left out.

    Raises:
        ValueError: if there is no such reader or memory token, or no text has a token.
    """
    part = _reader(model, reader, [memory_token], owner="snippets")
    found: list[tuple[float, int, int, list[int]]] = []
    with evaluating(model):
        for number, text in enumerate(texts):
            ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            if not ids:
                continue
            size = part.bank.num_memory_tokens
            with record_reads(
                model, tokens_per_chapter=size, kept=1, watched=[memory_token]
            ) as recording:
                model(input_ids=torch.tensor([ids], device=model.device))
            weights = recording.passages[0].reads[reader].watched[0, :, 0]
            best = weights.topk(min(num, len(ids)))
            pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            found += [(weight, number, place, ids) for weight, place in pairs]
    require(
        ok=bool(found),
        owner="snippets",
        rule="a text must have a token",
        got={"texts": len(texts)},
        remedy="pass texts to read",
    )
    found.sort(key=lambda each: -each[0])
    return [
        Snippet(
            weight=weight,
            text=number,
            position=place,
            before=tokenizer.decode(ids[max(0, place - around) : place]),
            token=tokenizer.decode(ids[place : place + 1]),
            after=tokenizer.decode(ids[place + 1 : place + 1 + around]),
        )
        for weight, number, place, ids in found[:num]
    ]


def _reader(model: Any, name: str, memory_tokens: Sequence[int], *, owner: str) -> Any:
    readers = readers_of(model, owner=owner)
    require(
        ok=name in readers,
        owner=owner,
        rule=f"reader must be one of {', '.join(readers)}",
        got={"reader": name},
        remedy="name it as a recording does",
    )
    _check_tokens(readers[name].bank, memory_tokens, owner=owner)
    return readers[name]


def _check_tokens(bank: Any, memory_tokens: Sequence[int], *, owner: str) -> None:
    beyond = [each for each in memory_tokens if not 0 <= each < bank.num_memory_tokens]
    require(
        ok=not beyond,
        owner=owner,
        rule=f"memory tokens must be numbers from 0 to {bank.num_memory_tokens - 1}",
        got={"memory_tokens": beyond},
        remedy="name memory tokens of the bank",
    )


def _numbers(memory_tokens: Sequence[int], part: nn.Module) -> Tensor:
    return torch.tensor(list(memory_tokens), device=next(part.parameters()).device)


def _ending(model: Any) -> tuple[Any, Any]:
    """Give the head of a model, and the norm before it."""
    if not hasattr(model, "base"):
        return model.head, model.norm
    inner: Any = inner_model(model.base)
    # The one norm that stands beside the decoder's layers; a decoder may have none.
    beside = [part for part in inner.get_decoder().children() if "Norm" in type(part).__name__]
    return inner.get_output_embeddings(), beside[0] if len(beside) == 1 else nn.Identity()


def _embedding(model: Any) -> Tensor:
    if not hasattr(model, "base"):
        weight: Tensor = model.embedding.weight
        return weight
    inner: Any = inner_model(model.base)
    found: Tensor = inner.get_input_embeddings().weight
    return found


def _largest(scores: Tensor, memory_tokens: Sequence[int], *, num: int) -> list[NearTokens]:
    best = scores.float().topk(min(num, scores.shape[-1]))
    rows = zip(memory_tokens, best.indices.tolist(), best.values.tolist(), strict=True)
    return [NearTokens(memory_token=each, ids=ids, scores=values) for each, ids, values in rows]
