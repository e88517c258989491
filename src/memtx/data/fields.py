"""Fields of a row, refused where they are missing or hold no text."""

from typing import Any

from memtx.checks import require
from memtx.data.protocols import Message, Row, State


def field_of(row: Row, *, name: str, owner: object) -> Any:
    """Give a field of a row.

    Args:
        row: the row.
        name: the field.
        owner: who asks.

    Raises:
        ValueError: if the row has no such field.
    """
    require(
        ok=name in row,
        owner=owner,
        rule="every row must have the field",
        got={"field": name, "fields": sorted(row)},
        remedy="name one of the fields that the rows have",
    )
    return row[name]


def text_of(row: Row, *, name: str, owner: object) -> str:
    """Give a field that holds text.

    Args:
        row: the row.
        name: the field.
        owner: who asks.

    Raises:
        ValueError: if the row has no such field, or it holds something else, or only blanks.
    """
    text = field_of(row, name=name, owner=owner)
    require(
        ok=isinstance(text, str) and bool(text.strip()),
        owner=owner,
        rule=f"the field {name!r} of every row must hold text",
        got={name: text},
        remedy="leave such rows out, as with dataset.filter(...)",
    )
    return str(text)


def integers_of(row: Row, *, name: str, owner: object) -> list[int]:
    """Give a field that holds a list of integers, or an array or tensor of them, as a list.

    Args:
        row: the row.
        name: the field.
        owner: who asks.

    Raises:
        ValueError: if the row has no such field, or it holds something else.
    """
    held = field_of(row, name=name, owner=owner)
    numbers = held.tolist() if hasattr(held, "tolist") else held
    # Anything else would be rounded, or fail where nobody knows the row.
    sound = isinstance(numbers, list | tuple) and set(map(type, numbers)) <= {int}
    require(
        ok=sound,
        owner=owner,
        rule=f"the field {name!r} of every row must be a list of integers",
        got={name: held if sound or not isinstance(numbers, list) else numbers[:8]},
        remedy="name the field of the tokens, made with dataset.map(...)",
    )
    return list(numbers)


def check_messages(messages: Any, *, owner: object) -> list[Message]:
    """Give the messages of a conversation.

    Args:
        messages: what a row holds.
        owner: who asks.

    Raises:
        ValueError: if they are not messages with `role` and `content`, both text, with an answer
            of the assistant among them.
    """
    # A row of the hub's older datasets holds a dict of lists.
    if isinstance(messages, dict) and set(messages) >= {"role", "content"}:
        pairs = zip(messages["role"], messages["content"], strict=True)
        messages = [{"role": role, "content": content} for role, content in pairs]
    sound = isinstance(messages, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("role"), str)
        and isinstance(each.get("content"), str)
        for each in messages
    )
    require(
        ok=sound,
        owner=owner,
        rule="messages must be a list of dicts with role and content, both text",
        got={"messages": messages},
        remedy="bring the rows into that form with dataset.map(...)",
    )
    answers = [each for each in messages if each["role"] == "assistant" and each["content"].strip()]
    require(
        ok=bool(answers),
        owner=owner,
        rule="every conversation must have an answer of the assistant",
        got={"roles": [each["role"] for each in messages]},
        remedy="leave such rows out, as with dataset.filter(...)",
    )
    return list(messages)


def require_one_split(rows: Any, *, owner: object) -> None:
    """Refuse a dict of splits where one split is wanted.

    Args:
        rows: what was passed.
        owner: who asks.

    Raises:
        ValueError: if it is a dict.
    """
    splits = sorted(rows) if isinstance(rows, dict) else []
    require(
        ok=not isinstance(rows, dict),
        owner=owner,
        rule="the dataset must be one split",
        got={"dataset": type(rows).__name__, "splits": splits},
        remedy="pass one of them, as dataset['train'], or load with split='train'",
    )


def require_same(state: State, *, owner: object, own: dict[str, Any]) -> None:
    """Refuse a state that was kept by something made otherwise.

    Args:
        state: the state.
        owner: who loads it.
        own: what must be as it was, by name.

    Raises:
        ValueError: if one of these is missing or was another.
    """
    for name, value in own.items():
        require(
            ok=name in state and state[name] == value,
            owner=owner,
            rule=f"a position must be of the same data, with {name}={value!r}",
            got={name: state.get(name), "state": sorted(state)},
            remedy="make the data as in the run that is resumed",
        )
