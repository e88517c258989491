"""Text files of a command line, read and cut into documents."""

import re
from pathlib import Path

from memtx.cli.command import CommandError

# Letters of a document, below which the next paragraph is added to it.
LETTERS = 2_000


def read_text(path: Path, *, flag: str, command: str) -> str:
    """Read a file of text that is not empty.

    Args:
        path: the file.
        flag: how the user named it, for messages.
        command: the command that asks, for messages.

    Raises:
        CommandError: if it cannot be read, is no UTF-8 text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{command}: {flag} must be a file that can be read, got {flag}={path} "
            f"({error.strerror}); check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{command}: {flag} must be UTF-8 text, got {flag}={path} ({error.reason} at byte "
            f"{error.start}); convert it."
        ) from error
    if not text.strip():
        raise CommandError(
            f"{command}: {flag} must hold text, got {flag}={path}, which is empty; pass another."
        )
    return text


def documents_of(text: str, *, separator: str | None, command: str) -> list[str]:
    """Cut a text into documents, empty ones left out.

    Args:
        text: the text.
        separator: regular expression between documents; None takes the whole text as one.
        command: the command that asks, for messages.

    Raises:
        CommandError: if `separator` is no regular expression, or nothing is left.
    """
    if separator is None:
        return [text]
    try:
        pieces = re.split(separator, text)
    except re.error as error:
        raise CommandError(
            f"{command}: --separator must be a regular expression, got --separator={separator!r} "
            f"({error}); write one such as '\\n\\n'."
        ) from error
    documents = [piece.strip() for piece in pieces if piece and piece.strip()]
    if not documents:
        raise CommandError(
            f"{command}: --separator must leave documents, got --separator={separator!r}, which "
            f"takes all of the text; pass another."
        )
    return documents


def training_text(path: Path, *, command: str) -> tuple[list[str], list[str]]:
    """Read any text: the first nine tenths to train on, the last one held out.

    Paragraphs, between blank lines, are gathered into documents of at least 2,000 letters, as
    `factories.pretraining:text_file` has it.

    Args:
        path: the file.
        command: the command that asks, for messages.

    Raises:
        CommandError: if it cannot be read, is too little, or no UTF-8 text.
    """
    text = read_text(path, flag="--text", command=command)
    documents = [""]
    for paragraph in documents_of(text, separator=r"\n\s*\n", command=command):
        if len(documents[-1]) >= LETTERS:
            documents.append("")
        documents[-1] += ("\n\n" if documents[-1] else "") + paragraph
    if len(documents) < 10:
        raise CommandError(
            f"{command}: --text must hold at least 20,000 letters in paragraphs with blank lines "
            f"between them, got --text={path} of {len(documents)} document(s); pass more text."
        )
    count = len(documents) // 10
    return documents[:-count], documents[-count:]
