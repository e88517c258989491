"""The real texts of a folder of data, by domain: what is trained on, and what is held out."""

import gzip
from dataclasses import dataclass
from pathlib import Path

from factories.tiny_base import manual

# Characters of a document; it ends with the line that reaches them.
CHARACTERS = 2_000
# One document in so many is held out: the last ones of a domain.
HELD_OUT = 20
FILES: dict[str, list[str]] = {
    "wikipedia": ["wikitext2-valid.txt", "wikitext2-test.txt"],
    "shakespeare": ["tinyshakespeare.txt"],
    "stories": ["tinystories.txt"],
    "news": ["english-abc.txt.gz"],
    "bible": ["english-genesis.txt.gz"],
    "lovecraft": ["english-hp_lovecraft.txt.gz"],
    "inaugural": ["english-inaugural.txt.gz"],
    "reviews": ["english-movie_reviews.txt.gz"],
    "essays": ["english-paul_graham.txt.gz"],
    "union": ["english-state_union.txt.gz"],
    "web": ["english-webtext.txt.gz"],
}


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Documents of one kind of text."""

    name: str
    training: list[str]
    held_out: list[str]


def read_text(path: Path) -> str:
    """Read a text, packed by gzip or not."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    return path.read_text(encoding="utf-8")


def cut(text: str, *, characters: int) -> list[str]:
    """Cut a text at ends of lines into documents of at least so many characters, but the last."""
    documents, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= characters:
            documents.append("".join(lines))
            lines, size = [], 0
    documents.append("".join(lines))
    return [each.strip() for each in documents if each.strip()]


def parted(documents: list[str]) -> tuple[list[str], list[str]]:
    """Hold out the last documents."""
    count = max(1, len(documents) // HELD_OUT)
    return documents[:-count], documents[-count:]


def domains(folder: Path) -> list[Domain]:
    """Read the texts that a folder of data has, and the manual that ships with Python."""
    found = []
    for name, files in FILES.items():
        there = [folder / "text" / file for file in files if (folder / "text" / file).is_file()]
        if there:
            # What is held out of a domain ends each of its files.
            parts = [parted(cut(read_text(path), characters=CHARACTERS)) for path in there]
            training = [each for part, _ in parts for each in part]
            held_out = [each for _, part in parts for each in part]
            found.append(Domain(name=name, training=training, held_out=held_out))
    # Its topics contain one another; `manual` takes what is held out of the rest.
    training, held_out = manual(seed=0)
    return [*found, Domain(name="manual", training=training, held_out=held_out)]
