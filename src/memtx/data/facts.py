"""Facts: a prompt and the answer that must follow it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from memtx.checks import refusal, require
from memtx.context import IGNORED

LAYOUTS = (
    ("prompt", "target_new"),
    ("prompt", "answer"),
    ("prompt", "completion"),
    ("src", "answers"),
    ("question", "answer"),
)


@final
@dataclass(frozen=True, kw_only=True)
class Fact:
    """A prompt and its answer.

    Args:
        prompt: the text before.
        answer: the text that must follow it after one space.

    Source: the (prompt, target) pairs of CounterFact (Meng et al. 2022, arXiv 2202.05262).

    Example:
        >>> Fact(prompt="The capital of France is", answer="Paris").answer
        'Paris'
    """

    prompt: str
    answer: str


def read_facts(path: str | os.PathLike[str], num_facts: int | None = None) -> list[Fact]:
    """Read facts from a JSON or JSON-lines file of records, the first of each prompt.

    Args:
        path: the file. Records have one of the layouts `prompt` + `target_new` (CounterFact),
            `prompt` + `answer`, `prompt` + `completion`, `src` + `answers` (zsRE) or
            `question` + `answer`.
        num_facts: how many to read; None reads all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, its records have no known layout or hold something
            else than text, or it has fewer facts.
    """
    records = read_records(path, owner="read_facts")
    layout = next((pair for pair in LAYOUTS if set(pair) <= set(records[0])), None)
    require(
        ok=layout is not None,
        owner="read_facts",
        rule=f"records must have one of the layouts {', '.join(map('+'.join, LAYOUTS))}",
        got={"path": str(path), "fields": sorted(records[0])},
        remedy="rename the fields",
    )
    if layout is None:
        raise RuntimeError("read_facts: layout vanished; report this.")
    facts: dict[str, Fact] = {}
    for number, record in enumerate(records):
        prompt, answer = (record.get(name) for name in layout)
        text = answer[0] if isinstance(answer, list) and answer else answer
        if not (isinstance(prompt, str) and isinstance(text, str)):
            message = refusal(
                owner="read_facts",
                rule=f"{layout[0]} and {layout[1]} of every record must be text",
                got={"path": str(path), "record": number, layout[0]: prompt, layout[1]: answer},
                remedy="write both as strings",
            )
            raise ValueError(message)
        facts.setdefault(prompt, Fact(prompt=prompt, answer=text))
    require(
        ok=num_facts is None or 1 <= num_facts <= len(facts),
        owner="read_facts",
        rule=f"num_facts must be from 1 to the {len(facts)} facts with distinct prompts",
        got={"num_facts": num_facts},
        remedy="ask for fewer, or None for all",
    )
    return list(facts.values())[:num_facts]


def read_records(path: str | os.PathLike[str], *, owner: str) -> list[dict[str, Any]]:
    """Read the objects of a JSON or JSON-lines file, each value as it is written.

    Args:
        path: the file.
        owner: who asks.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no objects, or something else.
    """
    file = Path(path)
    if not file.is_file():
        message = f"{owner}: there must be a file, got path={str(file)!r}"
        raise FileNotFoundError(f"{message}; check it.")
    try:
        # Read as written: readers of tables would turn an answer like 1990-01-05 into a time.
        text = file.read_text(encoding="utf-8").strip()
        is_list = text.startswith("[")
        lines = [] if is_list else [line for line in text.split("\n") if line.strip()]
        records = json.loads(text) if is_list else [json.loads(line) for line in lines]
    except ValueError as error:
        message = f"{owner}: a file must hold JSON records, got path={str(file)!r} ({error})"
        raise ValueError(f"{message}; write a list of objects.") from error
    require(
        ok=bool(records) and all(isinstance(record, dict) for record in records),
        owner=owner,
        rule="a file must hold at least one record, and objects only",
        got={"path": str(file), "records": len(records)},
        remedy="pass a file with facts",
    )
    return list(records)


def fact_tokens(tokenizer: Any, fact: Fact) -> tuple[list[int], list[int]]:
    """Give the tokens of a fact's prompt, and those of its answer behind it.

    The prompt is tokenized alone, as it will be when it is asked; the answer takes the tokens
    it has behind the prompt where the tokenizer keeps that boundary, else its own.

    Args:
        tokenizer: a Hugging Face tokenizer.
        fact: the fact.
    """
    prompt: list[int] = _without_end(tokenizer, tokenizer(fact.prompt)["input_ids"])
    whole = _without_end(tokenizer, tokenizer(f"{fact.prompt} {fact.answer}")["input_ids"])
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        return prompt, whole[len(prompt) :]
    return prompt, tokenizer(f" {fact.answer}", add_special_tokens=False)["input_ids"]


def _without_end(tokenizer: Any, ids: list[int]) -> list[int]:
    ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if ended else ids


@final
class FactRows:
    """Facts as rows of `input_ids` and `labels`: the answer and the end count, the prompt not.

    Args:
        facts: the facts.
        tokenizer: a Hugging Face tokenizer; where it has an end token, the answer ends with it.

    Raises:
        ValueError: if there are no facts.

    Source: loss on the completion only, as instruction tuning has it.

    Example:
        >>> from memtx.data import Fact, FactRows
        >>> class Letters:
        ...     eos_token_id = 0
        ...     def __call__(self, text: str) -> dict[str, list[int]]:
        ...         return {"input_ids": [ord(letter) for letter in text]}
        >>> FactRows(facts=[Fact(prompt="a", answer="b")], tokenizer=Letters())[0]
        {'input_ids': [97, 32, 98, 0], 'labels': [-100, 32, 98, 0]}
    """

    def __init__(self, *, facts: list[Fact], tokenizer: Any) -> None:
        require(
            ok=len(facts) > 0,
            owner=self,
            rule="there must be at least one fact",
            got={"facts": len(facts)},
            remedy="pass facts to teach",
        )
        self.facts = facts
        self.tokenizer = tokenizer
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._rows = []
        for fact in facts:
            prompt, answer = fact_tokens(tokenizer, fact)
            ids = [*prompt, *answer, *end]
            self._rows.append(
                {"input_ids": ids, "labels": [IGNORED] * len(prompt) + [*answer, *end]}
            )

    def __len__(self) -> int:
        """Give the number of facts."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Give one row."""
        return self._rows[index]
