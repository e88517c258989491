"""All that a report shows, as plain values."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memtx.checks import require, require_positive
from memtx.data import Fact, fact_tokens
from memtx.modes import evaluating
from memtx.usage.effects import (
    answer_log_probability,
    chapter_effects,
    compare_next_tokens,
    memory_off,
)
from memtx.usage.reads import Reads
from memtx.usage.recording import readers_of, record_reads
from memtx.usage.report.readers import numbers_of, reader_of, together
from memtx.usage.report.words import Words, pieces_of

OWNER = "inspect_texts"
TOP = 5  # next tokens that are shown
EFFECTS = 16  # chapters that are taken out at most, one by one
DEAD = 0.01  # a weight that counts as reading a chapter
_MANY = 20_000  # tokens times readers, from where fewer weights of each are kept


def inspect_texts(
    model: Any,
    *,
    tokenizer: Any,
    texts: Mapping[str, str],
    title: str,
    tokens_per_chapter: int,
    max_length: int,
    fact: Fact | None,
    bank: int,
) -> dict[str, Any]:
    """Read texts with memory and without, and give what a report shows, ready for JSON.

    Args:
        model: a `MemoryAdapter` or a `MemoryTransformer`.
        tokenizer: its tokenizer.
        texts: the texts by name; each is read by itself.
        title: of the report.
        tokens_per_chapter: memory tokens of a chapter of a bank that is read densely.
        max_length: tokens of a text that are read; the rest is left out, and said to be.
        fact: prompt and answer that are asked for without each of the chapters that they read
            most; None asks nothing.
        bank: number of the bank these chapters are in.

    Raises:
        ValueError: if there is no text, a text has no token, the model has no memory reader or no
            such bank, or its numbers are not finite.
    """
    _check(model, texts=texts, max_length=max_length, bank=bank)
    words = Words(tokenizer=tokenizer)
    encoded = {
        name: pieces_of(tokenizer, text, name=name, max_length=max_length)
        for name, text in texts.items()
    }
    recorded = [
        _recorded(model, ids, tokens_per_chapter=tokens_per_chapter)
        for ids, _, _ in encoded.values()
    ]
    names = list(recorded[0])
    places = len(names) * sum(len(ids) for ids, _, _ in encoded.values())
    kept = 16 if places < _MANY // 4 else 4 if places < _MANY else 2
    shown = [
        {
            "name": name,
            "pieces": pieces,
            "cut": cut,
            "reads": [_mille(reads[each], kept) for each in names],
            "tops": [_tops(reads[each], min(kept, 3)) for each in names],
            **_compared(model, ids, words),
        }
        for (name, (ids, pieces, cut)), reads in zip(encoded.items(), recorded, strict=True)
    ]
    readers = [
        reader_of(model, name, [reads[name] for reads in recorded], words=words, at_least=DEAD)
        for name in names
    ]
    effects = None
    if fact is not None:
        effects = _effects(model, tokenizer, readers, fact=fact, bank=bank)
    return {
        "title": title,
        "about": _about(model, encoded),
        "words": words.known,
        "texts": shown,
        "readers": readers,
        "mean": together(readers, recorded, at_least=DEAD),
        "effects": effects,
    }


def _check(model: Any, *, texts: Mapping[str, str], max_length: int, bank: int) -> None:
    require_positive(owner=OWNER, sizes={"max_length": max_length})
    require(
        ok=bool(texts),
        owner=OWNER,
        rule="there must be a text",
        got={"texts": list(texts)},
        remedy="pass texts by name",
    )
    readers_of(model, owner=OWNER)
    banks = list(model.banks)
    require(
        ok=0 <= bank < len(banks),
        owner=OWNER,
        rule=f"bank must be the number of a bank, from 0 to {len(banks) - 1}",
        got={"bank": bank},
        remedy="count the model's banks from 0",
    )


def summary(inspection: Mapping[str, Any]) -> dict[str, Any]:
    """Give the numbers of an inspection without those of each token.

    Args:
        inspection: what `inspect_texts` gave.
    """
    left_out = {"order", "said", "bank"}
    numbers = ("name", "cut", "loss_off", "loss_on", "mean_divergence")
    return {
        "title": inspection["title"],
        "texts": [
            {
                "tokens": len(text["pieces"]),
                "cut": text["cut"],
                **{key: text[key] for key in numbers},
            }
            for text in inspection["texts"]
        ],
        "readers": [
            {key: value for key, value in each.items() if key not in left_out}
            for each in inspection["readers"]
        ],
        "effects": inspection["effects"],
    }


@torch.no_grad()
def _recorded(model: Any, ids: Sequence[int], *, tokens_per_chapter: int) -> dict[str, Reads]:
    with (
        evaluating(model),
        record_reads(model, tokens_per_chapter=tokens_per_chapter, kept=8, watched=[]) as recording,
    ):
        model(input_ids=torch.tensor([ids], device=model.device))
    return recording.passages[0].reads


def _mille(reads: Reads, kept: int) -> list[list[list[int]]]:
    """Give the chapters that each token read most, in thousandths."""
    best = reads.chapters[0].topk(min(kept, reads.num_chapters))
    return _pairs(best.indices, best.values)


def _tops(reads: Reads, kept: int) -> list[list[list[int]]]:
    return _pairs(reads.tokens[0, :, :kept], reads.weights[0, :, :kept])


def _pairs(numbers: torch.Tensor, weights: torch.Tensor) -> list[list[list[int]]]:
    thousandths = (weights * 1000).round().long().tolist()
    return [
        [[number, part] for number, part in zip(row, parts, strict=True) if part > 0]
        for row, parts in zip(numbers.tolist(), thousandths, strict=True)
    ]


def _compared(model: Any, ids: Sequence[int], words: Words) -> dict[str, Any]:
    found = compare_next_tokens(model, torch.tensor(ids), top=TOP)
    require(
        ok=bool(found.divergence.isfinite().all()),
        owner=OWNER,
        rule="the model's distributions must be finite",
        got={"not finite": int((~found.divergence.isfinite()).sum())},
        remedy="load the model in a wider dtype",
    )

    def best(ids: torch.Tensor, probabilities: torch.Tensor) -> list[list[list[float]]]:
        return [
            [[words.number(each), round(1000 * p, 1)] for each, p in zip(row, ps, strict=True)]
            for row, ps in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]

    def loss(following: torch.Tensor) -> float | None:
        if not len(following):
            return None
        return round(float(-following.double().clamp(min=1e-30).log().mean()), 6)

    return {
        "on": best(found.on, found.on_probabilities),
        "off": best(found.off, found.off_probabilities),
        "next_on": [round(each, 4) for each in found.next_on.tolist()],
        "next_off": [round(each, 4) for each in found.next_off.tolist()],
        "divergence": [round(each, 4) for each in found.divergence.tolist()],
        "mean_divergence": round(float(found.divergence.mean()), 6),
        "loss_on": loss(found.next_on),
        "loss_off": loss(found.next_off),
    }


def _effects(
    model: Any, tokenizer: Any, readers: list[dict[str, Any]], *, fact: Fact, bank: int
) -> dict[str, Any]:
    own = [each for each in readers if each["bank"] == bank]
    size, shared = own[0]["tokens_per_chapter"], own[0]["shared"]
    prompt, answer = fact_tokens(tokenizer, fact)
    reads = _recorded(model, prompt + answer, tokens_per_chapter=size)
    load = torch.stack([reads[each["name"]].load for each in own]).sum(dim=0)
    most = load.argsort(descending=True, stable=True)[:EFFECTS]
    given = {"model": model, "tokenizer": tokenizer, "fact": fact}
    with memory_off(model):
        off = answer_log_probability(**given)
    found = chapter_effects(
        bank=model.banks[bank],
        # The last one that could be chosen cannot be taken out.
        chapters=[
            int(each)
            for each in most
            if load[each] > 0.0 and (each < shared or len(load) - shared > 1) and len(load) > 1
        ],
        tokens_per_chapter=size,
        **given,
    )
    return {
        "prompt": fact.prompt,
        "answer": fact.answer,
        "bank": bank,
        "whole": answer_log_probability(**given),
        "off": off,
        "chapters": [
            [each.chapter, each.change] for each in sorted(found, key=lambda each: each.change)
        ],
    }


def _about(model: Any, encoded: Mapping[str, tuple[list[int], list[str], bool]]) -> str:
    tokens = sum(len(ids) for ids, _, _ in encoded.values())
    cut = [name for name, (_, _, was_cut) in encoded.items() if was_cut]
    left = f" The end of {', '.join(cut)} was left out." if cut else ""
    return f"{numbers_of(model)}; {tokens:,} tokens of {len(encoded)} text(s).{left}"
