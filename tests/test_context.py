"""What a forward knows of its tokens."""

import re

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.models.llama import LlamaConfig

from memtx.context import Context, Slots
from tests.routing import context

UNLABELLED = -100


def filled(batch, length):
    """A cache that holds so many tokens."""
    cache = DynamicCache()
    tokens = torch.zeros(batch, 1, length, 1)
    context(batch=batch, length=length, known={"cache": cache}).remember(tokens, tokens)
    return cache


def test_nothing_known_is_whole_rows():
    here = Context.plain(torch.zeros(2, 3, 4))
    assert here.real.all()
    assert here.all_real
    assert not here.packed
    assert here.index.tolist() == here.positions.tolist() == [[0, 1, 2]] * 2
    assert here.document.tolist() == [[0, 0, 0]] * 2
    assert here.prompt.all()
    assert (here.known, here.length, here.past) == (3, 3, 0)
    assert here.attention_mask() is None


def test_padding_is_not_counted():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]])
    here = context(batch=3, length=4, known={"attention_mask": mask})
    assert here.index.tolist() == [[0, 0, 1, 2], [0, 1, 1, 1], [0, 0, 1, 2]]
    assert here.positions.equal(here.index)
    assert not here.all_real
    assert here.prompt.equal(mask.bool())
    assert context(batch=3, length=4, known={"attention_mask": torch.ones_like(mask)}).all_real


def test_documents_start_where_positions_start_again():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 1, 7]])
    here = context(batch=3, length=5, known={"position_ids": positions})
    assert here.packed
    assert here.document.tolist() == [[0, 0, 0, 1, 1], [0] * 5, [0, 1, 2, 2, 3]]
    assert here.index.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 1, 0]]
    assert here.positions.equal(positions)
    assert here.all_real


def test_padding_around_documents():
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0]])
    positions = torch.tensor([[1, 0, 1, 1, 0, 1, 1]])
    here = context(batch=1, length=7, known={"position_ids": positions, "attention_mask": mask})
    assert here.document[mask.bool()].tolist() == [0, 0, 1, 1]
    assert here.index[mask.bool()].tolist() == [0, 1, 0, 1]
    # Positions that go on over padding are one document.
    positions = torch.tensor([[1, 0, 1, 1, 2, 3, 1]])
    here = context(batch=1, length=7, known={"position_ids": positions, "attention_mask": mask})
    assert not here.packed
    assert here.index[mask.bool()].tolist() == [0, 1, 2, 3]


def test_positions_of_one_row_are_those_of_all():
    here = context(batch=2, length=3, known={"position_ids": torch.tensor([[4, 5, 6]])})
    assert here.positions.tolist() == [[4, 5, 6]] * 2
    assert not here.packed


def test_prompts_end_at_the_first_label_of_their_document():
    no, yes = UNLABELLED, 7
    labels = torch.tensor([[no, no, yes, no, no, yes], [yes] * 6, [no] * 6])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    here = context(batch=3, length=6, known={"labels": labels, "position_ids": positions})
    assert here.prompt.int().tolist() == [[1, 1, 0, 1, 1, 0], [0] * 6, [1] * 6]
    here = context(batch=3, length=6, known={"labels": labels})
    assert here.prompt.int().tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6, [1] * 6]


def test_padding_is_no_prompt_and_ends_none():
    labels = torch.tensor([[7, UNLABELLED, UNLABELLED, 7]])
    mask = torch.tensor([[0, 1, 1, 1]])
    here = context(batch=1, length=4, known={"labels": labels, "attention_mask": mask})
    assert here.prompt.int().tolist() == [[0, 1, 1, 0]]


def test_after_the_first_call_nothing_is_prompt():
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    here = context(batch=2, length=2, known={"attention_mask": mask, "cache": filled(2, 3)})
    assert not here.prompt.any()
    assert here.index.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert here.positions.tolist() == [[2, 3], [3, 4]]
    assert (here.known, here.length, here.past) == (5, 2, 3)


def test_mask_of_attention():
    mask = torch.tensor([[0, 1, 1, 1]])
    positions = torch.tensor([[1, 0, 1, 0]])
    here = context(batch=1, length=4, known={"attention_mask": mask, "position_ids": positions})
    wanted = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert here.attention_mask()[0, 0].int().tolist() == wanted
    assert here.attention_mask() is here.attention_mask()
    later = context(batch=1, length=2, known={"cache": filled(1, 1)})
    assert later.attention_mask()[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_without_a_cache_nothing_is_remembered():
    keys, values = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2, 1)
    here = context(batch=1, length=2, known={})
    assert [a is b for a, b in zip(here.remember(keys, values), (keys, values), strict=True)]


def test_each_remembers_in_a_layer_of_its_own():
    cache, tokens = DynamicCache(), torch.randn(2, 1, 5, 3)
    for start, end in ((0, 2), (2, 5)):
        here = context(batch=2, length=end - start, known={"cache": cache})
        for factor in (1.0, 2.0):
            part = factor * tokens[:, :, start:end]
            keys, values = here.remember(part, part[..., :1])
            assert torch.equal(keys, factor * tokens[:, :, :end])
            assert torch.equal(values, keys[..., :1])
    assert len(cache.layers) == 2


def test_numbers_of_layers_go_on_from_the_first():
    slots = Slots(first=5, given=0)
    assert [slots.take(), slots.take()] == [5, 6]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            {"attention_mask": torch.ones(2, 4)},
            "attention_mask must be [batch, tokens of the cache and of this call], got "
            "attention_mask=(2, 4), wanted=(2, 3); give a 1 for each real token of the cache "
            "and of the call, a 0 for padding.",
        ),
        (
            {"attention_mask": torch.ones(1, 3)},
            "attention_mask must be [batch, tokens of the cache and of this call], got "
            "attention_mask=(1, 3), wanted=(2, 3); give a 1 for each real token of the cache "
            "and of the call, a 0 for padding.",
        ),
        (
            {"position_ids": torch.zeros(3, 3)},
            "position_ids must be [batch, length] or [1, length], got position_ids=(3, 3), "
            "wanted=(2, 3); give the position of each token of this call.",
        ),
        (
            {"labels": torch.zeros(2, 2)},
            "labels must be [batch, length], got labels=(2, 2), wanted=(2, 3); give a label for "
            "each token of this call, -100 where there is none.",
        ),
        (
            {"position_ids": torch.tensor([[0, 1, 0]]), "cache": DynamicCache()},
            "a row must hold one document where there is a cache, got position_ids='starting "
            "again within a row', cache='DynamicCache'; pass use_cache=False with packed "
            "documents.",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(known, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'Context: {message}')}$"):
        context(batch=2, length=3, known=known)


def test_an_attention_mask_must_cover_the_cache():
    with pytest.raises(ValueError, match=r"got attention_mask=\(1, 2\), wanted=\(1, 5\);"):
        context(
            batch=1, length=2, known={"attention_mask": torch.ones(1, 2), "cache": filled(1, 3)}
        )


def test_a_cache_filled_by_another_is_refused():
    tokens = torch.zeros(1, 1, 1, 1)
    here = context(batch=1, length=1, known={"cache": filled(1, 4)})
    here.remember(tokens, tokens)
    message = (
        "Context: the cache must have been filled with the memory on, from its first token, got "
        "tokens in the cache=5, remembered by the memory=1; start with an empty cache, and switch "
        "the memory on before the first call."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        here.remember(tokens, tokens)


def static(length):
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=1, hidden_size=4)
    return StaticCache(config=config, max_cache_len=length)


def test_a_cache_of_fixed_size_gives_all_its_places_once_it_is_begun():
    cache, mask = static(6), torch.tensor([[0, 1, 1], [1, 1, 1]])
    here = context(batch=2, length=3, known={"cache": cache, "attention_mask": mask})
    one = torch.arange(6.0).view(2, 1, 3, 1)
    assert (here.known, here.place) == (3, None)
    for each in here.remember(one, 2 * one):
        assert each.shape == (2, 1, 3, 1)  # the prompt reads what it gives
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    here = context(batch=2, length=1, known={"cache": cache, "attention_mask": mask})
    assert (here.known, here.length, here.place.tolist(), here.num_before()) == (6, 1, [3], 3)
    assert here.real.tolist() == [[False, True, True, True, False, False], [True] * 4 + [False] * 2]
    assert here.positions.tolist() == [[2], [3]]
    assert here.prompt.tolist() == [[False], [False]]
    assert here.before().sum(dim=1).tolist() == [2, 3]
    assert here.own(here.index).tolist() == [[2], [3]]
    assert here.attention_mask().shape == (2, 1, 1, 6)
    keys, values = here.remember(one[:, :, :1] + 9.0, one[:, :, :1])
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2, 9, 0, 0], [3, 4, 5, 12, 0, 0]]
    assert values[:, 0, :3, 0].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert here.place.tolist() == [3]  # the cache has counted on


def test_a_cache_of_fixed_size_goes_on_token_by_token():
    cache = static(8)
    one = torch.zeros(1, 1, 3, 1)
    context(batch=1, length=3, known={"cache": cache}).remember(one, one)
    message = (
        "Context: a cache of fixed size must go on token by token, got cache='StaticCache', tokens "
        "of the call=2; give one token at a time, or use a DynamicCache, which is what generate "
        "makes unless told otherwise."
    )
    two = torch.zeros(1, 1, 2, 1)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        context(batch=1, length=2, known={"cache": cache}).remember(two, two)
    cache.layers.append(type(cache.layers[0])(max_cache_len=8))
    here = context(batch=1, length=1, known={"cache": cache})
    here.slots.take()
    with pytest.raises(ValueError, match="switch the memory on before the first call"):
        here.remember(two[:, :, :1], two[:, :, :1])
