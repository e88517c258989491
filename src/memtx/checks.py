"""The one form in which memtx refuses a value."""

from collections.abc import Mapping


def refusal(*, owner: object, rule: str, got: Mapping[str, object], remedy: str) -> str:
    """Write the message `Owner: what must hold, got name=value; what to do.`

    Args:
        owner: the instance that refuses (its class is named), or a name.
        rule: what must hold.
        got: the values that broke the rule, by name.
        remedy: what the user can do.
    """
    name = owner if isinstance(owner, str) else type(owner).__name__
    values = ", ".join(f"{key}={value!r}" for key, value in got.items())
    return f"{name}: {rule}, got {values}; {remedy}."


def require(*, ok: bool, owner: object, rule: str, got: Mapping[str, object], remedy: str) -> None:
    """Raise a ValueError that names owner, rule, values and remedy unless `ok`.

    Args:
        ok: whether the rule holds.
        owner: the instance that checks (its class is named), or a name.
        rule: what must hold.
        got: the values that broke the rule, by name.
        remedy: what the user can do.

    Raises:
        ValueError: if `ok` is false.
    """
    if not ok:
        raise ValueError(refusal(owner=owner, rule=rule, got=got, remedy=remedy))


def require_positive(*, owner: object, sizes: Mapping[str, int]) -> None:
    """Raise a ValueError for the first of `sizes` that is not an integer of at least 1.

    Args:
        owner: the instance that checks (its class is named), or a name.
        sizes: the values to check, by name.

    Raises:
        ValueError: if a size is not an integer, or is below 1.
    """
    for name, size in sizes.items():
        whole = isinstance(size, int) and not isinstance(size, bool)
        require(
            ok=whole and size >= 1,
            owner=owner,
            rule=f"{name} must be an integer of at least 1",
            got={name: size},
            remedy="pass a positive size",
        )


def require_probability(*, owner: object, name: str, value: float) -> None:
    """Raise a ValueError unless `value` lies in [0, 1).

    Args:
        owner: the instance that checks (its class is named), or a name.
        name: what the value is called.
        value: the value to check.

    Raises:
        ValueError: if the value lies outside [0, 1).
    """
    require(
        ok=0.0 <= value < 1.0,
        owner=owner,
        rule=f"{name} must lie in [0, 1)",
        got={name: value},
        remedy="pass 0.0 to switch it off",
    )


def unwritable(*, owner: object, path: object, error: OSError) -> OSError:
    """Give an error of the same kind that says who could not write where, and what to do.

    Args:
        owner: the instance that writes (its class is named), or a name.
        path: the place as the user named it.
        error: what the system said.
    """
    message = refusal(
        owner=owner,
        rule="the place to write must be a folder that can be written",
        got={"path": str(path), "system": error.strerror or str(error)},
        remedy="choose another place, or change its permissions",
    )
    return OSError(error.errno, message) if error.errno else OSError(message)
