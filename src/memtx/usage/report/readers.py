"""What a report says of each reader of a memory."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from memtx.adapters import MemoryAdapter
from memtx.usage.nearest import written_tokens
from memtx.usage.reads import Reads, overlap
from memtx.usage.report.words import Words

SAID_CHAPTERS = 32
SAID_TOKENS = 3
SAID_WORDS = 6


def reader_of(
    model: Any, name: str, recorded: Sequence[Reads], *, words: Words, at_least: float
) -> dict[str, Any]:
    """Give what is told of one reader.

    Args:
        model: the model.
        name: of the reader, in a recording.
        recorded: what each text read there, one row each.
        words: collects the words that are named.
        at_least: the weight that counts as reading a chapter.
    """
    part = model.get_submodule(_module(name))
    found = _told(recorded, at_least=at_least)
    return {
        "name": name,
        "label": _label(model, name),
        "bank": next(n for n, bank in enumerate(model.banks) if bank is part.bank),
        "routed": hasattr(part, "router"),
        "shared": part.router.num_shared_chapters if hasattr(part, "router") else 0,
        "said": _said(model, name, recorded, chapters=found["order"][:SAID_CHAPTERS], words=words),
        **found,
    }


def together(
    readers: list[dict[str, Any]],
    recorded: Sequence[dict[str, Reads]],
    *,
    at_least: float,
) -> dict[str, Any] | None:
    """Give what all readers read in the mean, if they read one bank in the same chapters.

    Args:
        readers: what is told of each.
        recorded: what each text read, by reader.
        at_least: the weight that counts as reading a chapter.
    """
    kinds = {(each["bank"], each["tokens_per_chapter"], each["shared"]) for each in readers}
    if len(readers) == 1 or len(kinds) != 1:
        return None
    means = []
    for text in recorded:
        first = next(iter(text.values()))
        chapters = torch.stack([reads.chapters for reads in text.values()]).mean(dim=0)
        empty = first.tokens[..., :0]
        means.append(
            Reads(
                tokens_per_chapter=first.tokens_per_chapter,
                real=first.real,
                chapters=chapters,
                tokens=empty,
                weights=empty.float(),
                watched=empty.float(),
            )
        )
    label = f"all {len(readers)} readers, mean"
    alike = {key: readers[0][key] for key in ("bank", "shared")}
    return {"label": label, **alike, **_told(means, at_least=at_least)}


def numbers_of(model: Any) -> str:
    """Say in half a line what the memory of a model is made of.

    Args:
        model: the model.
    """
    what = type(model.base).__name__ if isinstance(model, MemoryAdapter) else type(model).__name__
    sizes = " + ".join(f"{bank.num_memory_tokens:,}" for bank in model.banks)
    return f"{what} with {len(model.banks)} bank(s) of {sizes} memory tokens"


def _told(recorded: Sequence[Reads], *, at_least: float) -> dict[str, Any]:
    """Give load, entropies, dead chapters and overlaps over some texts."""
    whole = Reads(
        tokens_per_chapter=recorded[0].tokens_per_chapter,
        real=torch.cat([each.real for each in recorded], dim=1),
        chapters=torch.cat([each.chapters for each in recorded], dim=1),
        tokens=torch.cat([each.tokens for each in recorded], dim=1),
        weights=torch.cat([each.weights for each in recorded], dim=1),
        watched=torch.cat([each.watched for each in recorded], dim=1),
    )
    load = whole.load
    return {
        "tokens_per_chapter": whole.tokens_per_chapter,
        "load": [round(each, 5) for each in load.tolist()],
        "order": load.argsort(descending=True, stable=True).tolist(),
        "entropy_of_load": round(whole.entropy_of_load, 5),
        "mean_entropy": round(whole.mean_entropy, 5),
        "dead": whole.dead(at_least=at_least),
        "overlap": [[round(overlap(one, other), 4) for other in recorded] for one in recorded],
    }


def _said(
    model: Any, name: str, recorded: Sequence[Reads], *, chapters: list[int], words: Words
) -> dict[str, list[list[Any]]]:
    """Give, by chapter, its memory tokens that were read most, and the words they write."""
    size = recorded[0].tokens_per_chapter
    weight: Counter[int] = Counter()
    for reads in recorded:
        for token, part in zip(
            reads.tokens.flatten().tolist(), reads.weights.flatten().tolist(), strict=True
        ):
            weight[token] += part
    most: dict[int, list[int]] = {chapter: [] for chapter in chapters}
    for token, _ in weight.most_common():
        own = most.get(token // size)
        if own is not None and len(own) < SAID_TOKENS:
            own.append(token)
    wanted = [token for tokens in most.values() for token in tokens]
    if not wanted:
        return {}
    near = written_tokens(model, reader=_module(name), memory_tokens=wanted, num=SAID_WORDS)
    ids = {each.memory_token: [words.number(token) for token in each.ids] for each in near}
    return {
        str(chapter): [[token, ids[token]] for token in tokens]
        for chapter, tokens in most.items()
        if tokens
    }


def _module(name: str) -> str:
    """Give the name of the module, which may have been called several times."""
    return name.partition(" ")[0]


def _label(model: Any, name: str) -> str:
    """Name a reader by its place in the model."""
    first, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if isinstance(model, MemoryAdapter) and first == "insertions":
        place: Any = model.insertions[int(number)]
        label = f"layer {place.layer}, {place.site.value.replace('_', ' ')}"
        return label if len(place.sublayers) == 1 else f"{label} ({inner})"
    return name.removesuffix(".sublayer")
