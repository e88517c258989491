"""Invented facts: distinct, of the seed alone, and unknown to any text."""

import pytest

from factories.tiny_base import manual
from factories.world import RELATIONS, invented_facts, invented_names


def names_in(facts):
    """Every country and answer, in order."""
    found = []
    for number, fact in enumerate(facts):
        before, after = RELATIONS[number % len(RELATIONS)].split("{}")
        found += [fact.prompt.removeprefix(before).removesuffix(after), fact.answer[:-1]]
    return found


def all_facts(seed):
    old, new = invented_facts(seed=seed, num_old=104, num_new=200)
    return old + new


def test_counts_are_those_asked_for():
    old, new = invented_facts(seed=0, num_old=3, num_new=5)
    assert (len(old), len(new)) == (3, 5)
    assert invented_facts(seed=0, num_old=0, num_new=0) == ([], [])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_name_appears_twice(seed):
    names = names_in(all_facts(seed))
    assert len(names) == len(set(names)) == 2 * 304
    assert all(name.isalpha() and name.istitle() for name in names)


def test_old_and_new_share_no_name():
    old, new = invented_facts(seed=0, num_old=104, num_new=200)
    assert not set(names_in(old)) & set(names_in(new))


def test_an_answer_ends_with_a_full_stop_and_a_prompt_does_not():
    for fact in all_facts(0):
        assert fact.answer.endswith(".")
        assert not fact.prompt.endswith((".", " "))


def test_a_seed_gives_the_same_facts_again():
    assert all_facts(0) == all_facts(0)


def test_another_seed_gives_other_facts():
    prompts = [{fact.prompt for fact in all_facts(seed)} for seed in (0, 1)]
    assert len(prompts[0] & prompts[1]) < 10
    assert not set(all_facts(0)) & set(all_facts(1))


def test_more_facts_begin_with_the_same_ones():
    few, many = (invented_facts(seed=0, num_old=8, num_new=n) for n in (4, 9))
    assert many[0] == few[0]
    assert many[1][:4] == few[1]


def test_every_relation_is_asked():
    for pattern in RELATIONS:
        before, after = pattern.split("{}")
        asked = [f for f in all_facts(0) if f.prompt.startswith(before)]
        assert len(asked) == 304 // len(RELATIONS)
        assert all(fact.prompt.endswith(after) for fact in asked)


def test_names_are_distinct_and_of_the_seed():
    names = invented_names(seed=5, count=500)
    assert len(set(names)) == 500
    assert names == invented_names(seed=5, count=500)


def test_no_text_of_the_manual_knows_a_name():
    text = " ".join([*manual(seed=0)[0], *manual(seed=0)[1]])
    assert not [name for name in names_in(all_facts(0)) if name in text]
