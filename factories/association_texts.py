"""Texts of keys and values: `key value key value ...`, then keys that each ask for their value."""

import torch
from torch import Tensor

FILLER = 0


def chosen(*, rows: int, among: int, count: int, generator: torch.Generator) -> Tensor:
    """Choose `count` different numbers below `among` for each row, in any order."""
    scores = torch.rand(rows, among, generator=generator, device=generator.device)
    return scores.topk(count, dim=1).indices


def texts(
    *, rows: int, pairs: int, length: int, vocab_size: int, generator: torch.Generator, once: bool
) -> tuple[Tensor, Tensor]:
    """Make texts and their labels.

    Keys are of the first half of the vocabulary, values of the second, and no key stands twice.
    Behind the pairs every other place may ask. In a test each key asks once, at a place of its own
    (`once`), and fillers stand elsewhere; in training any key asks at each place.
    """
    half, device = vocab_size // 2, generator.device
    keys = 1 + chosen(rows=rows, among=half - 1, count=pairs, generator=generator)
    values = half + chosen(rows=rows, among=half, count=pairs, generator=generator)
    ids = torch.full((rows, length), FILLER, device=device)
    labels = torch.full_like(ids, -100)
    ids[:, 0 : 2 * pairs : 2], ids[:, 1 : 2 * pairs : 2] = keys, values
    places = (length - 2 * pairs) // 2
    if once:
        at = 2 * chosen(rows=rows, among=places, count=pairs, generator=generator)
        asked = torch.arange(pairs, device=device).expand(rows, -1)
    else:
        at = 2 * torch.arange(places, device=device).expand(rows, -1)
        asked = torch.randint(pairs, (rows, places), generator=generator, device=device)
    ids.scatter_(1, 2 * pairs + at, keys.gather(1, asked))
    # A model scores the token behind each: the answer is what would stand behind the key.
    labels.scatter_(1, 2 * pairs + at + 1, values.gather(1, asked))
    return ids, labels
