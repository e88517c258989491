"""Edits: a fact to teach, and what tells whether it was learned and nothing else was."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from memtx.checks import refusal, require
from memtx.data.facts import Fact, read_records


@final
@dataclass(frozen=True, kw_only=True)
class Edit:
    """A fact to teach, other ways to ask for it, and facts nearby that must stay.

    Args:
        prompt: the text before.
        target_new: the answer that is taught.
        target_true: the answer from before; None where it is not known.
        paraphrases: other texts before, after which the new answer must come too.
        neighbours: facts nearby, with the answers they must keep.

    Source: the records of CounterFact (Meng et al. 2022, arXiv 2202.05262).

    Example:
        >>> edit = Edit(prompt="The capital of France is", target_new="Rome", target_true="Paris",
        ...             paraphrases=["France is governed from"],
        ...             neighbours=[Fact(prompt="The capital of Spain is", answer="Madrid")])
        >>> edit.fact.answer
        'Rome'
    """

    prompt: str
    target_new: str
    target_true: str | None
    paraphrases: list[str]
    neighbours: list[Fact]

    @property
    def fact(self) -> Fact:
        """What is taught."""
        return Fact(prompt=self.prompt, answer=self.target_new)


@final
@dataclass(frozen=True, kw_only=True)
class EditFields:
    """The fields of a file's records in which the parts of an edit are.

    A field holds a text, or a list: of an answer the first counts, of prompts all do.

    Args:
        prompt: the text before.
        target_new: the answer that is taught.
        target_true: the answer from before; None where records have none.
        paraphrases: other texts before; None where records have none.
        neighbours: prompts nearby; None where records have none.
        neighbour_answers: their answers, one for each or one for all; None where records have none.

    Raises:
        ValueError: if only one of `neighbours` and `neighbour_answers` is named.

    Source: memtx's own.

    Example:
        >>> EditFields(prompt="src", target_new="alt", target_true="answers",
        ...            paraphrases="rephrase", neighbours="loc", neighbour_answers="loc_ans").prompt
        'src'
    """

    prompt: str
    target_new: str
    target_true: str | None
    paraphrases: str | None
    neighbours: str | None
    neighbour_answers: str | None

    def __post_init__(self) -> None:
        require(
            ok=(self.neighbours is None) == (self.neighbour_answers is None),
            owner=self,
            rule="neighbours and neighbour_answers must be named together",
            got={"neighbours": self.neighbours, "neighbour_answers": self.neighbour_answers},
            remedy="name both, or None for both",
        )


def read_edits(
    path: str | os.PathLike[str], fields: EditFields, num_edits: int | None = None
) -> list[Edit]:
    """Read edits from a JSON or JSON-lines file of records, the first of each prompt.

    A record whose prompt or new answer is an empty text teaches nothing and is left out (zsRE has
    such); other empty texts count as absent.

    Args:
        path: the file.
        fields: where in a record the parts are.
        num_edits: how many to read; None reads all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, a record lacks a field or holds something else than text
            in it, no record teaches anything, or there are fewer edits.
    """
    edits: dict[str, Edit] = {}
    for number, record in enumerate(read_records(path, owner="read_edits")):
        where = {"path": str(path), "record": number}
        edit = _edit(record, fields=fields, where=where)
        if edit.prompt.strip() and edit.target_new.strip():
            edits.setdefault(edit.prompt, edit)
    require(
        ok=bool(edits),
        owner="read_edits",
        rule="a file must hold at least one record with a prompt and a new answer",
        got={"path": str(path), "edits": 0},
        remedy="name the fields as the records have them",
    )
    require(
        ok=num_edits is None or 1 <= num_edits <= len(edits),
        owner="read_edits",
        rule=f"num_edits must be from 1 to the {len(edits)} edits with distinct prompts",
        got={"num_edits": num_edits},
        remedy="ask for fewer, or None for all",
    )
    return list(edits.values())[:num_edits]


def _edit(record: Mapping[str, Any], *, fields: EditFields, where: Mapping[str, object]) -> Edit:
    prompts = _texts(record, fields.neighbours, where=where)
    answers = _texts(record, fields.neighbour_answers, where=where)
    if len(answers) == 1:
        answers = answers * len(prompts)
    require(
        ok=len(answers) == len(prompts),
        owner="read_edits",
        rule="there must be one answer for each neighbour, or one for all",
        got={**where, "neighbours": len(prompts), "answers": len(answers)},
        remedy="write as many answers as prompts",
    )
    true = _texts(record, fields.target_true, where=where)
    return Edit(
        prompt=_texts(record, fields.prompt, where=where)[0],
        target_new=_texts(record, fields.target_new, where=where)[0],
        target_true=true[0] if true and true[0].strip() else None,
        paraphrases=[
            each for each in _texts(record, fields.paraphrases, where=where) if each.strip()
        ],
        neighbours=[
            Fact(prompt=prompt, answer=answer)
            for prompt, answer in zip(prompts, answers, strict=True)
            if prompt.strip() and answer.strip()
        ],
    )


def _texts(
    record: Mapping[str, Any], name: str | None, *, where: Mapping[str, object]
) -> list[str]:
    """Give the texts of a field: none where it is not named."""
    if name is None:
        return []
    held = record.get(name)
    texts = held if isinstance(held, list) else [held]
    if texts and all(isinstance(each, str) for each in texts):
        return list(texts)
    message = refusal(
        owner="read_edits",
        rule=f"every record must hold text in the field {name!r}",
        got={**where, name: held, "fields": sorted(record)},
        remedy="name the fields as the records have them",
    )
    raise ValueError(message)
