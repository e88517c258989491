"""docs/troubleshooting.md quotes messages as memtx writes them."""

import ast
import re

import pytest

from tests.docs.blocks import blocks
from tests.rules.source import ROOT, Source, repository_sources

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGE = re.compile(r"[\w ]+: (?P<rule>.+?), got .+; (?P<remedy>.+)\.")
# A pattern with less text than that says nothing.
ENOUGH = 12


def patterns(sources: list[Source]) -> list[re.Pattern[str]]:
    """Every text in the sources; whatever stands in the places of an f-string."""
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    found = []
    for node in nodes:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
        literal = [text for text in texts if isinstance(text, str)]
        if sum(map(len, literal)) >= ENOUGH:
            found.append("".join(".*" if text is None else re.escape(str(text)) for text in texts))
    return [re.compile(each) for each in found]


def unknown(message: str, known: list[re.Pattern[str]]) -> list[str]:
    """The parts of a message that no source writes: rule and remedy, or the whole of it."""
    if any(each.fullmatch(message) for each in known):
        return []
    match = MESSAGE.fullmatch(message)
    if match is None:
        return [message]
    parts = [match["rule"], match["remedy"]]
    return [each for each in parts if each != ".." and not any(p.fullmatch(each) for p in known)]


@pytest.fixture(scope="module")
def known():
    return patterns([each for each in repository_sources() if each.folder == "src"])


def test_every_message_is_one_of_memtx(known):
    messages = [" ".join(b.text.split()) for b in blocks(PAGE) if b.language == "text"]
    assert len(messages) > 10
    assert [part for message in messages for part in unknown(message, known)] == []


def test_a_message_that_nobody_writes_is_found(known):
    rule = "banks must list every bank that an insertion reads"
    remedy = "add the missing bank instance to banks=[...]"
    assert unknown(f"MemoryAdapter: {rule}, got ...; {remedy}.", known) == []
    assert unknown(f"MemoryAdapter: {rule}, got ...; pray.", known) == ["pray"]
    assert unknown(f"MemoryAdapter: no {rule}, got ...; {remedy}.", known) == [f"no {rule}"]
    assert unknown("Out of luck.", known) == ["Out of luck."]
