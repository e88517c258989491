"""Texts cut into what their tokens stand for, and words of the vocabulary."""

from typing import Any, final

from memtx.checks import require


@final
class Words:
    """The words of the vocabulary that a report names, each once.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Source: memtx's own.

    Example:
        >>> Words.__name__  # made by inspect_texts
        'Words'
    """

    def __init__(self, *, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: list[str] = []
        self._numbers: dict[int, int] = {}

    def number(self, token: int) -> int:
        """Give the place of a token's word among those that are known.

        Args:
            token: its id.
        """
        if token not in self._numbers:
            self._numbers[token] = len(self.known)
            self.known.append(word_of(self.tokenizer, token))
        return self._numbers[token]


def word_of(tokenizer: Any, token: int) -> str:
    """Give a token as a word; a word that begins with a space has it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        token: its id; a head may score more tokens than a tokenizer has.
    """
    if not 0 <= token < len(tokenizer):
        return f"<{token}>"
    word: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    # SentencePiece writes a space as this sign, and drops it from a first word.
    begins = str(tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
    return f" {word}" if begins and not word.startswith(" ") else word


def pieces_of(
    tokenizer: Any, text: str, *, name: str, max_length: int
) -> tuple[list[int], list[str], bool]:
    """Give the tokens of a text, what of it each stands for, and whether its end was cut off.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the text.
        name: its name, for messages.
        max_length: the most tokens.

    Raises:
        ValueError: if the text has no token.
    """
    offsets = None
    if tokenizer.is_fast:
        given = tokenizer(text, return_offsets_mapping=True, verbose=False)
        offsets = given["offset_mapping"][:max_length]
    else:
        given = tokenizer(text, verbose=False)
    ids: list[int] = given["input_ids"]
    require(
        ok=bool(ids),
        owner="inspect_texts",
        rule="a text must have a token",
        got={"text": name},
        remedy="leave it out",
    )
    cut = len(ids) > max_length
    ids = ids[:max_length]
    if offsets is None:
        return ids, [word_of(tokenizer, each) for each in ids], cut
    pieces, seen = [], 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        if start == end:
            # Not of the text, as a token that begins it.
            pieces.append("" if end else word_of(tokenizer, token))
            continue
        # What stands between two tokens goes with the second; a character in several bytes is
        # that of its first token.
        pieces.append(text[seen:end])
        seen = max(seen, end)
    return ids, pieces, cut
