"""What a run is composed of, as plain values, so that another run can be told from it."""

import dataclasses
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from memtx.adapters import MemoryAdapter
from memtx.adapters.families import SIZES
from memtx.expression import is_component
from memtx.spec.base_weights import digits, looked_at
from memtx.spec.describe import describe
from memtx.spec.processes import whole
from memtx.train.run import Run
from memtx.train.run_state import model_tensors

# What cuts the rows of a step into batches.
_CUTS = {"accumulation", "processes", "batch_size"}


def composition(run: Run) -> dict[str, Any]:
    """Give what must be the same in a run that goes on: model, groups, terms, optimizer.

    Where parameters are sharded, every process must call this.

    Args:
        run: the run.
    """
    objective = run.objective
    names = {id(p): name for name, p in objective.named_parameters()}
    return {
        "model": _described(objective.model),
        "tensors": {name: _form(each) for name, each in model_tensors(objective).items()},
        "frozen": {
            name: {"form": _form(each), "digits": digits(whole(each))}
            for name, each in _frozen(objective.model).items()
        },
        "groups": {
            group.name: sorted(names.get(id(p), "?") for p in group.parameters())
            for group in run.groups
        },
        "terms": {term.name: _plain(term) for term in objective.terms},
        "streams": sorted(run.streams),
        "optimizer": type(run.optimizer).__name__,
    }


def settings(run: Run) -> dict[str, Any]:
    """Give the numbers that a run that goes on may have changed, and is warned of.

    Args:
        run: the run.
    """
    outside = ("params", "lr")
    found = {
        "steps": run.steps,
        "learning_rate": {group.name: group.learning_rate for group in run.groups},
        "weights": dict(run.objective.weights),
        "optimizer": [
            {key: _value(value) for key, value in group.items() if key not in outside}
            for group in run.optimizer.param_groups
        ],
        "callbacks": [type(callback).__name__ for callback in run.callbacks],
        "processes": run.parallelism.world_size,
        "batch_size": {
            name: size
            for name, stream in run.streams.items()
            if isinstance(size := getattr(stream, "batch_size", None), int)
        },
    }
    return found | {name: _made_of(value) for name, value in run.settings.items()}


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Give the settings that have changed, but not how the same rows of a step are cut up.

    Args:
        then: those that were kept.
        now: those of the run.
    """
    left_out = _CUTS if _rows(then) == _rows(now) else set()
    one, other = (
        {key: value for key, value in each.items() if key not in left_out} for each in (then, now)
    )
    return differences(one, other, path="settings")


def _rows(settings: dict[str, Any]) -> dict[str, int]:
    """Give the rows of a step, of all processes, by stream."""
    batches = settings.get("accumulation", 1) * settings.get("processes", 1)
    sizes: dict[str, int] = settings.get("batch_size", {})
    return {"": batches} if not sizes else {name: batches * size for name, size in sizes.items()}


def differences(then: Any, now: Any, *, path: str) -> list[str]:
    """Give where two plain values differ.

    Args:
        then: the one that was kept.
        now: the other.
        path: what both are called.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        parts = [
            (f"{path}.{key}", then.get(key, "nothing"), now.get(key, "nothing"))
            for key in sorted({*then, *now})
        ]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        parts = [(f"{path}[{n}]", *pair) for n, pair in enumerate(zip(then, now, strict=True))]
    else:
        return [] if then == now else [f"{path}: {_short(then)} then, {_short(now)} now"]
    found: list[str] = []
    for place, one, other in parts:
        found += differences(one, other, path=place)
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _described(model: nn.Module) -> Any:
    """Give the description of a model, without where its base was read from."""
    if is_component(model):
        spec: dict[str, Any] = describe(model)
        if isinstance(model, MemoryAdapter):
            spec["model"]["arguments"]["base"]["base"].pop("name", None)
        return _json(spec)
    config = getattr(model, "config", None)
    sizes = {name: getattr(config, name) for name in SIZES if hasattr(config, name)}
    # Sharding gives a module a class of its own, named after the module's.
    return {"class": type(model).__name__.removeprefix("FSDP"), "sizes": _json(sizes)}


def _json(value: Any) -> Any:
    """Give a value as JSON gives it back."""
    if isinstance(value, dict):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return value


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    """Give the frozen tensors that tell one base from another; of a base, some layers' alone."""
    if not isinstance(model, MemoryAdapter):
        named = model.named_parameters()
        return {name: p for name, p in named if not p.requires_grad and p.is_floating_point()}
    base = {id(p) for p in model.base.parameters()}
    own = {
        name: p
        for name, p in model.named_parameters()
        if not p.requires_grad and id(p) not in base and p.is_floating_point()
    }
    inside = {f"base.{name}": p for name, p in looked_at(model.base).items()}
    return own | {name: p for name, p in inside.items() if not p.requires_grad}


def _plain(term: Any) -> dict[str, Any]:
    """Give a term's class and what it was made of, but for its weight."""
    names = [each.name for each in dataclasses.fields(term)] if is_dataclass(term) else ["name"]
    found = {name: _value(getattr(term, name)) for name in names if name != "weight"}
    return {"class": type(term).__name__, "stream": term.stream} | found


def _made_of(value: Any) -> Any:
    """Give a number as it is, and an object by its class and, of a dataclass, its fields."""
    if not is_dataclass(value):
        plain = value is None or isinstance(value, str | int | float | bool)
        return value if plain else {"class": type(value).__name__}
    fields = {each.name: _value(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return {"class": type(value).__name__} | fields


def _value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_value(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)
