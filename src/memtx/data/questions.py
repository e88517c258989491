"""Multiple-choice questions."""

import os
from dataclasses import dataclass
from typing import Any, final

from memtx.checks import require
from memtx.data.facts import read_records


@final
@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its choices.

    Args:
        context: the text before.
        choices: the texts that may follow it after one space.
        answer: which of them is right, from 0.

    Raises:
        ValueError: if there are fewer than two choices, one is empty, or `answer` is none of them.

    Source: the multiple-choice tasks of lm-evaluation-harness.

    Example:
        >>> Question(context="Grass is", choices=["green", "blue"], answer=0).answer
        0
    """

    context: str
    choices: list[str]
    answer: int

    def __post_init__(self) -> None:
        require(
            ok=len(self.choices) > 1 and all(self.choices),
            owner=self,
            rule="there must be at least two choices, none of them empty",
            got={"choices": self.choices},
            remedy="leave the question out",
        )
        require(
            ok=0 <= self.answer < len(self.choices),
            owner=self,
            rule=f"answer must be from 0 to {len(self.choices) - 1}",
            got={"answer": self.answer},
            remedy="count choices from 0",
        )


def read_questions(
    path: str | os.PathLike[str],
    *,
    context: str,
    choices: str,
    answer: str,
    num_questions: int | None = None,
) -> list[Question]:
    """Read questions from a JSON or JSON-lines file of records.

    Args:
        path: the file.
        context: the field that holds the text before.
        choices: the field that holds a list of texts, or a dict of lists `text` and `label` as ARC
            has it.
        answer: the field that holds the right one: its number from 0, its label, or its text.
        num_questions: how many to read, from the first; None reads all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, a record lacks a field or holds something else in it, or
            there are fewer questions.
    """
    records = read_records(path, owner="read_questions")
    require(
        ok=num_questions is None or 1 <= num_questions <= len(records),
        owner="read_questions",
        rule=f"num_questions must be from 1 to the {len(records)} that the file holds",
        got={"num_questions": num_questions},
        remedy="ask for fewer, or None for all",
    )
    found = []
    for number, record in enumerate(records[:num_questions]):
        held = record.get(choices)
        texts = held.get("text") if isinstance(held, dict) else held
        labels = held.get("label") if isinstance(held, dict) else texts
        right = _index(record.get(answer), labels=labels)
        require(
            ok=isinstance(record.get(context), str) and _are_texts(texts) and right is not None,
            owner="read_questions",
            rule="every record must hold a text, a list of choices, and one of them as the answer",
            got={
                "record": number,
                **{name: record.get(name) for name in (context, choices, answer)},
            },
            remedy="name the fields as the records have them",
        )
        found.append(
            Question(context=record[context], choices=list(texts or []), answer=int(right or 0))
        )
    return found


def _are_texts(texts: Any) -> bool:
    return isinstance(texts, list) and all(isinstance(each, str) for each in texts)


def _index(answer: Any, *, labels: Any) -> int | None:
    """Give which choice an answer names; None where it names none."""
    if not isinstance(labels, list):
        return None
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(labels) else None
    return labels.index(answer) if answer in labels else None
