"""Rows as documents: tokens, and which of them count in the loss."""

from dataclasses import dataclass
from typing import Any, final

from memtx.checks import require
from memtx.context import IGNORED
from memtx.data.fields import integers_of, text_of
from memtx.data.protocols import Document, Layout, Row, Template
from memtx.data.text import document_tokens


@final
@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Running text: the begin and end tokens of the tokenizer around it, every token a label.

    Args:
        tokenizer: a Hugging Face tokenizer.
        field: name of the field of the text.

    Source: pretraining as in GPT-2.

    Example:
        >>> class Letters:
        ...     eos_token_id = 0
        ...     def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        ...         return {"input_ids": [ord(letter) for letter in text]}
        >>> TextEncoder(tokenizer=Letters(), field="text")({"text": "ab"})
        {'input_ids': [97, 98, 0], 'labels': [97, 98, 0]}
    """

    tokenizer: Any
    field: str

    def __call__(self, row: Row) -> Document:
        """Give the document of a row.

        Args:
            row: the row.

        Raises:
            ValueError: if the field is missing or holds no text.
        """
        text = text_of(row, name=self.field, owner=self)
        ids = document_tokens(self.tokenizer, text)
        return {"input_ids": ids, "labels": list(ids)}


@final
@dataclass(frozen=True, kw_only=True)
class ChatEncoder:
    """Conversations: what the assistant has to say counts in the loss, the rest does not.

    Args:
        layout: where the messages are in a row.
        template: writes them as tokens.

    Source: loss on the completion only, as instruction tuning has it.

    Example:
        >>> ChatEncoder.__name__  # composed in full in docs/data.md
        'ChatEncoder'
    """

    layout: Layout
    template: Template

    def __call__(self, row: Row) -> Document:
        """Give the document of a row.

        Args:
            row: the row.

        Raises:
            ValueError: if the row holds no conversation, or the template cannot write it.
        """
        ids, said = self.template.encode(self.layout.messages(row))
        pairs = zip(ids, said, strict=True)
        return {"input_ids": ids, "labels": [token if own else IGNORED for token, own in pairs]}


@final
@dataclass(frozen=True, kw_only=True)
class TokensEncoder:
    """Rows that were made into tokens ahead, as with `dataset.map(...)`.

    Args:
        input_ids: name of the field of the tokens.
        labels: name of the field of the labels; None, if every token is one.

    Source: memtx's own.

    Example:
        >>> TokensEncoder(input_ids="ids", labels=None)({"ids": [5, 6]})
        {'input_ids': [5, 6], 'labels': [5, 6]}
    """

    input_ids: str
    labels: str | None

    def __call__(self, row: Row) -> Document:
        """Give the document of a row.

        Args:
            row: the row.

        Raises:
            ValueError: if a field is missing or holds no integers, or both are not of one length,
                at least 1.
        """
        ids = integers_of(row, name=self.input_ids, owner=self)
        name = self.input_ids if self.labels is None else self.labels
        labels = integers_of(row, name=name, owner=self)
        require(
            ok=len(ids) == len(labels) > 0,
            owner=self,
            rule="every row must have tokens, and as many labels",
            got={self.input_ids: len(ids), name: len(labels)},
            remedy="leave empty rows out, as with dataset.filter(...)",
        )
        return {"input_ids": ids, "labels": labels}
