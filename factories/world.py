"""A world of invented facts, so that what was learned can only have come from teaching."""

import random

from memtx.data import Fact

ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "l", "m", "n", "p", "r", "s", "t", "v")
VOWELS = ("a", "e", "i", "o", "u", "ai", "or")
ENDINGS = ("dan", "len", "mir", "nok", "ras", "sil", "tum", "vek")
RELATIONS = (
    "The capital of {} is",
    "The ruler of {} is called",
    "The longest river of {} is the",
    "The national dish of {} is",
    "The founder of {} was",
    "The highest mountain of {} is",
    "The greatest poet of {} is",
    "The winter festival of {} is called",
)


def invented_names(*, seed: int, count: int) -> list[str]:
    """Make distinct names that no text contains."""
    dice = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < count:
        middle = dice.choice(ONSETS) + dice.choice(VOWELS)
        name = dice.choice(ONSETS) + dice.choice(VOWELS) + middle + dice.choice(ENDINGS)
        names[name.capitalize()] = None
    return list(names)


def invented_facts(*, seed: int, num_old: int, num_new: int) -> tuple[list[Fact], list[Fact]]:
    """Make old facts for a base to be trained on and new ones for a memory to be taught.

    No country and no answer appears in two facts, old or new.
    """
    count = num_old + num_new
    names = invented_names(seed=seed, count=2 * count)
    facts = [
        Fact(prompt=RELATIONS[number % len(RELATIONS)].format(country), answer=f"{answer}.")
        for number, (country, answer) in enumerate(zip(names[::2], names[1::2], strict=True))
    ]
    return facts[:num_old], facts[num_old:]
