"""A generation whose bank lies elsewhere: the same tokens, its chapters there in time."""

import pytest
import torch

from memtx import (
    HybridRouting,
    OffloadedMemoryBank,
    PromptRouting,
    RollingRouting,
    TokenRouting,
)
from tests.memory.distant import mapped
from tests.routing import CHAPTERS, TOKENS, WINDOW, transformer

STRATEGIES = {
    "rolling": RollingRouting(window=WINDOW),
    "hybrid": HybridRouting(window=WINDOW),
    "prompt": PromptRouting(),
    "token": TokenRouting(),
}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
MASKS = {"whole": [1] * 5, "left padding": [0, 0, 1, 1, 1]}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
IDS = torch.tensor([[7, 9, 3, 33, 5], [2, 61, 0, 4, 50]])


def put(model, bank):
    """The same model with another bank."""
    model.banks[0] = bank
    for part in list(model.modules()):
        if hasattr(part, "router"):
            part.bank = bank


def offloaded(bank, places):
    return OffloadedMemoryBank(stored=bank, tokens_per_chapter=TOKENS, num_resident_chapters=places)


def settle(bank):
    for cache in bank._distant.residents._caches.values():
        cache.settle()


@torch.no_grad()
def generated(model, mask, steps, *, after_each):
    """Greedy tokens of a generation with a cache, step by step."""
    cache, ids, mask = None, IDS, torch.tensor([mask, [1] * len(mask)])
    found = []
    for _ in range(steps):
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        ids, cache = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        found.append(ids)
        after_each()
    return torch.cat(found, dim=1)


def rows_each_time(model, mask, steps):
    return generated(model, mask, steps, after_each=lambda: None)


@each_strategy
@each_mask
def test_the_same_tokens_are_generated(strategy, mask, tmp_path):
    model = transformer(strategy, losses=[])
    plain = model.banks[0]
    wanted = rows_each_time(model, mask, 12)
    for bank in (offloaded(plain, 2), offloaded(plain, CHAPTERS), mapped(plain, 4, tmp_path)):
        put(model, bank)
        assert torch.equal(rows_each_time(model, mask, 12), wanted)
        settle(bank)


@each_mask
@pytest.mark.parametrize("name", ["rolling", "hybrid"])
def test_chapters_are_there_before_their_window_begins(name, mask):
    """From the second call on nothing is missed, though windows choose anew."""
    model = transformer(STRATEGIES[name], losses=[])
    bank = offloaded(model.banks[0], CHAPTERS)
    put(model, bank)
    misses = []

    def note():
        settle(bank)
        misses.append(bank.traffic.misses)

    generated(model, mask, 12, after_each=note)
    assert misses == [misses[0]] * 12
    assert bank.traffic.fetched_ahead > 0
    assert bank.traffic.hits > 0


def test_nothing_is_fetched_in_training_or_without_a_cache():
    model = transformer(RollingRouting(window=WINDOW), losses=[])
    bank = offloaded(model.banks[0], CHAPTERS)
    put(model, bank)
    model(input_ids=IDS, use_cache=True)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    settle(bank)
    assert bank.traffic.fetched_ahead == 0


@pytest.mark.parametrize("name", ["rolling", "hybrid"])
@each_mask
def test_what_is_foreseen_is_what_is_chosen(name, mask):
    """The chapters of a window, told at the last token before it."""
    model = transformer(STRATEGIES[name], losses=[])
    routers = [part for part in model.modules() if hasattr(part, "following")]
    foreseen, chosen = [], []

    def keep(router, inputs, routing):
        _, context = inputs
        if context.cache is not None and context.length == 1:
            chosen.append((router, context.known, routing.chapters[:, -1]))
        following = router.following(context)
        if following is not None:
            rows = router.strategy.completed(context, context.memo[router, "remembered"][1])
            foreseen.append((router, context.known, rows, following[:, 0]))

    handles = [each.register_forward_hook(keep) for each in routers]
    rows_each_time(model, mask, 13)
    for each in handles:
        each.remove()
    assert len({known for _, known, _, _ in foreseen}) >= 3
    compared = 0
    for router, known, rows, chapters in foreseen:
        for other, then, later in chosen:
            if other is router and then == known + 1:
                assert torch.equal(later[rows].sort().values, chapters.sort().values)
                compared += 1
    assert compared >= 2 * 3
