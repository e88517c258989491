"""What `memtx evaluate` measures: files read into items, and items measured on a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtx.cli.command import CommandError
from memtx.cli.text import documents_of, read_text

COMMAND = "memtx evaluate"
# By option: what is measured, and what it is measured on.
KINDS = {
    "perplexity": ("perplexity", "documents"),
    "facts": ("recall", "facts"),
    "choices": ("multiple choice", "questions"),
    "edits": ("editing", "edits"),
    "forgetting": ("forgetting", "documents"),
}
# Where in a record the parts of a question or an edit are looked for, in this order.
CHOICES = {
    "context": ("context", "question"),
    "choices": ("choices",),
    "answer": ("answer", "answerKey"),
}
EDITS = {
    "prompt": ("prompt", "src"),
    "target_new": ("target_new", "alt"),
    "target_true": ("target_true", "ground_truth", "answers"),
    "paraphrases": ("paraphrases", "rephrase_prompt", "rephrase"),
    "neighbours": ("neighbours", "locality_prompt", "loc"),
    "neighbour_answers": ("neighbour_answers", "locality_ground_truth", "loc_ans"),
}
NEEDED = {"context", "choices", "answer", "prompt", "target_new"}


def fields_of(pairs: list[str]) -> dict[str, str]:
    """Read `PART=FIELD` pairs.

    Args:
        pairs: what the user wrote.

    Raises:
        CommandError: if one is no pair, or names no part.
    """
    found = {}
    for pair in pairs:
        part, equals, field = pair.partition("=")
        if part not in CHOICES | EDITS or not equals or (part in NEEDED and not field):
            raise CommandError(
                f"{COMMAND}: --field must be PART=FIELD with PART one of "
                f"{', '.join(CHOICES | EDITS)}, got --field={pair!r}; for example "
                f"--field context=question."
            )
        found[part] = field
    return found


def items_of(
    kind: str, path: Path, *, limit: int | None, fields: Mapping[str, str], separator: str | None
) -> list[Any]:
    """Read what a kind of measurement is made on.

    Args:
        kind: of `KINDS`.
        path: the file.
        limit: how many facts, questions or edits; None, all.
        fields: of records, by part, where they are not those that are looked for.
        separator: regular expression between documents; None takes a file as one.

    Raises:
        CommandError: if a text cannot be cut, or records lack a part.
        ValueError: if the file does not hold what is wanted.
        OSError: if it cannot be read.
    """
    from memtx.data import EditFields, read_edits, read_facts, read_questions

    if kind in ("perplexity", "forgetting"):
        text = read_text(path, flag=f"--{kind}", command=COMMAND)
        return documents_of(text, separator=separator, command=COMMAND)
    if kind == "facts":
        return list(read_facts(path, num_facts=limit))
    if kind == "choices":
        parts = _fields(path, known=CHOICES, given=fields)
        return list(read_questions(path, **_texts(parts), num_questions=limit))
    return list(
        read_edits(path, EditFields(**_fields(path, known=EDITS, given=fields)), num_edits=limit)
    )


def _fields(
    path: Path, *, known: Mapping[str, tuple[str, ...]], given: Mapping[str, str]
) -> dict[str, Any]:
    """Give the field of each part: the named one, else the first that the first record has."""
    from memtx.data.facts import read_records

    record = read_records(path, owner=COMMAND)[0]
    found: dict[str, str | None] = {}
    for part, names in known.items():
        there = next((name for name in names if name in record), None)
        # An empty name says that there is none.
        found[part] = (given[part] or None) if part in given else there
    missing = [part for part in known if part in NEEDED and found[part] is None]
    if missing:
        raise CommandError(
            f"{COMMAND}: records must have {' and '.join(missing)}, got fields "
            f"{', '.join(record)} in {path}; name them by --field {missing[0]}=FIELD."
        )
    return found


def _texts(parts: Mapping[str, Any]) -> dict[str, str]:
    return {part: str(field) for part, field in parts.items()}


def measured(
    kind: str, items: list[Any], *, model: Any, tokenizer: Any, sizes: Mapping[str, int]
) -> Any:
    """Measure items on a model as it is now; what is given back tells its `metrics`.

    Args:
        kind: of `KINDS`.
        items: as `items_of` gives them.
        model: the model.
        tokenizer: its tokenizer.
        sizes: `max_length`, `stride` and `batch_size`.

    Raises:
        ValueError: if something does not fit.
    """
    from memtx.evaluate import (
        StridedWindows,
        editing,
        forgetting,
        multiple_choice,
        perplexity,
        recall,
    )

    both = {"model": model, "tokenizer": tokenizer, "batch_size": sizes["batch_size"]}
    if kind == "facts":
        return recall(facts=items, **both)
    if kind == "choices":
        return multiple_choice(questions=items, max_length=sizes["max_length"], **both)
    if kind == "edits":
        return editing(edits=items, base=None, **both)
    windows = StridedWindows(max_length=sizes["max_length"], stride=sizes["stride"])
    if kind == "perplexity":
        return perplexity(documents=items, windows=windows, **both)
    return forgetting(documents=items, windows=windows, base=None, **both)


def length_of(model: Any) -> int:
    """Give how many tokens a model is asked to read: what it has places for, at most 1,024.

    Args:
        model: an adapter, or a whole model of memtx.
    """
    from memtx.adapters import MemoryAdapter
    from memtx.models.sizes import sizes_of

    if isinstance(model, MemoryAdapter):
        places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    else:
        places = sizes_of(model).get("max_position_embeddings")
    return min(1_024, int(places or 1_024))
