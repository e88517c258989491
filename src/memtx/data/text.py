"""Running text as rows of tokens of one length."""

import os
import re
from pathlib import Path
from typing import Any, final

import numpy as np

from memtx.checks import require, require_positive
from memtx.data.protocols import Arrays


def read_documents(path: str | os.PathLike[str], separator: str) -> list[str]:
    """Read a text file as a list of documents, in order, empty ones left out.

    Args:
        path: a UTF-8 text file.
        separator: regular expression between documents.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no document.
    """
    text = Path(path).read_text(encoding="utf-8")
    documents = [piece.strip() for piece in re.split(separator, text) if piece.strip()]
    require(
        ok=bool(documents),
        owner="read_documents",
        rule="a text file must hold at least one document",
        got={"path": str(path), "characters": len(text)},
        remedy="pass a file with text",
    )
    return documents


def document_tokens(tokenizer: Any, document: str) -> list[int]:
    """Give the tokens of a document, with the begin and end tokens of the tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer; where it has an end token, the document ends with it.
        document: the text.
    """
    ids: list[int] = tokenizer(document, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


@final
class TextRows:
    """Documents laid end to end, each with its begin and end tokens, cut into rows of one length.

    Args:
        documents: the texts, in order.
        tokenizer: a Hugging Face tokenizer.
        length: tokens per row; what is left over at the end makes no row.

    Raises:
        ValueError: if the documents do not fill one row.

    Source: packing as in GPT-2's pretraining.

    Example:
        >>> from memtx.data import TextRows
        >>> class Letters:
        ...     eos_token_id = 0
        ...     def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        ...         return {"input_ids": [ord(letter) for letter in text]}
        >>> TextRows(documents=["ab", "c"], tokenizer=Letters(), length=2)[1]
        {'input_ids': [0, 99], 'labels': [0, 99]}
    """

    def __init__(self, *, documents: list[str], tokenizer: Any, length: int) -> None:
        require_positive(owner=self, sizes={"length": length})
        require(
            ok=not isinstance(documents, str),
            owner=self,
            rule="documents must be a list of texts",
            got={"documents": documents if not isinstance(documents, str) else documents[:40]},
            remedy="pass [text] for one text",
        )
        self.documents = documents
        self.tokenizer = tokenizer
        self.length = length
        stream: list[int] = []
        for document in documents:
            stream += document_tokens(tokenizer, document)
        count = len(stream) // length
        # As an array, so that a batch of them need not be read number by number.
        self._rows = np.array(stream[: count * length], dtype=np.int64).reshape(count, length)
        require(
            ok=count > 0,
            owner=self,
            rule=f"the documents must fill at least one row of {length} tokens",
            got={"tokens": len(stream), "documents": len(documents)},
            remedy="pass more text or a smaller length",
        )

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Give one row; every token is a label."""
        ids = self._rows[index].tolist()
        return {"input_ids": ids, "labels": ids}

    def arrays(self, numbers: list[int]) -> Arrays:
        """Give some rows as arrays `[rows, length]`.

        Args:
            numbers: which rows.
        """
        return {"input_ids": self._rows[numbers], "labels": self._rows[numbers]}
