"""What there is to keep of a run: tensors by name, and plain values."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memtx.checks import refusal, require
from memtx.spec.processes import is_sharded
from memtx.train.random_state import random_state, set_random_state
from memtx.train.run import Run

MODEL, OPTIMIZER = "model/", "optimizer/"
Values = dict[str, Any]


def model_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """Give what is trained, and the buffers a state dict has, by name; what is shared, once.

    Args:
        objective: the model and its terms, not what a parallelism wrapped around them.
    """
    trained = {name: p.detach() for name, p in objective.named_parameters() if p.requires_grad}
    kept = objective.state_dict(keep_vars=True)
    return trained | {name: b for name, b in objective.named_buffers() if name in kept}


def optimizer_state(run: Run) -> tuple[dict[str, Tensor], Values]:
    """Give what the optimizer keeps of each parameter, by its name: tensors, and plain values.

    Args:
        run: the run.

    Raises:
        ValueError: if a process keeps a part of a tensor that cannot be told from a whole one.
    """
    tensors: dict[str, Tensor] = {}
    values: Values = {}
    for name, parameter in _trained(run).items():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                values.setdefault(name, {})[key] = value
                continue
            require(
                ok=is_sharded({key: value}) or not is_sharded({name: parameter}) or not value.dim(),
                owner="RunCheckpoints",
                rule="what an optimizer keeps of a sharded parameter must be sharded as well",
                got={"optimizer": type(run.optimizer).__name__, "parameter": name, "state": key},
                remedy="take another optimizer, or DataParallel",
            )
            tensors[f"{name}/{key}"] = value
    return tensors, values


def _trained(run: Run) -> dict[str, nn.Parameter]:
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in run.objective.named_parameters() if id(p) in held}


def tensors_of(run: Run) -> tuple[dict[str, Tensor], Values]:
    """Give all tensors of a run by name, and the optimizer's plain values.

    Args:
        run: the run.
    """
    tensors, values = optimizer_state(run)
    named = {MODEL + name: tensor for name, tensor in model_tensors(run.objective).items()}
    return named | {OPTIMIZER + name: tensor for name, tensor in tensors.items()}, values


def set_optimizer_state(run: Run, *, tensors: Mapping[str, Tensor], values: Values) -> None:
    """Give the optimizer back what it kept.

    Args:
        run: the run.
        tensors: by `parameter/key`.
        values: the plain values, by parameter and key.
    """
    groups = run.optimizer.param_groups
    number = {id(p): n for n, p in enumerate(p for group in groups for p in group["params"])}
    state: dict[int, Values] = {}
    for name, parameter in _trained(run).items():
        own = {
            key.removeprefix(f"{name}/"): tensor
            for key, tensor in tensors.items()
            if key.rpartition("/")[0] == name
        }
        if own or name in values:
            state[number[id(parameter)]] = own | values.get(name, {})
    # Through its own face, which knows on which device each of its tensors lies.
    own_groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": own_groups})


def place_for(run: Run, *, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Give an empty tensor to read a tensor of the optimizer into.

    Args:
        run: the run.
        name: `parameter/key`.
        size: of the whole tensor.
        dtype: its dtype.

    Raises:
        ValueError: if the run has no such parameter.
    """
    parameter = _trained(run).get(name.rpartition("/")[0])
    require(
        ok=parameter is not None,
        owner="Resume",
        rule="the optimizer's state must be that of the run's parameters",
        got={"state": name},
        remedy="resume the run that was saved",
    )
    if parameter is not None and is_sharded({name: parameter}) and parameter.shape == size:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False).detach()
    return torch.empty(size, dtype=dtype)


def shared_values(run: Run) -> Values:
    """Give the values that all processes have in common: step, data positions, scaler.

    Args:
        run: the run.
    """
    return {
        "step": run.step,
        "steps": run.steps,
        "scaler": dict(run.scaler.state_dict()),
        "streams": {name: stream.state_dict() for name, stream in run.streams.items()},
    }


def own_values(run: Run) -> Values:
    """Give the values of this process: its random numbers, and what its callbacks remember.

    Args:
        run: the run.
    """
    return {
        "random": random_state(run.parallelism.device),
        "callbacks": [
            {"class": type(each).__name__, "state": each.state_dict()} for each in run.callbacks
        ],
    }


def set_shared_values(run: Run, values: Values) -> None:
    """Take up step, data positions and scaler.

    Args:
        run: the run.
        values: what `shared_values` gave.
    """
    run.step = values["step"]
    for name, stream in run.streams.items():
        stream.load_state_dict(values["streams"][name])
    if run.scaler.is_enabled() and values["scaler"]:
        run.scaler.load_state_dict(values["scaler"])


def set_own_values(run: Run, values: Values, *, is_own: bool) -> None:
    """Take up callbacks, and random numbers if they are this process's.

    Args:
        run: the run.
        values: what `own_values` gave.
        is_own: whether it was in a process of this number.
    """
    left = list(values["callbacks"])
    for callback in run.callbacks:
        name = type(callback).__name__
        found = next((each for each in left if each["class"] == name), None)
        if found is not None:
            left.remove(found)
            callback.load_state_dict(found["state"])
    if is_own:
        set_random_state(values["random"], device=run.parallelism.device)


def as_text(values: Values) -> str:
    """Write values as JSON.

    Args:
        values: plain ones.

    Raises:
        ValueError: if one is not plain; its place is named.
    """
    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        message = refusal(
            owner="RunCheckpoints",
            rule="states of streams, callbacks, scaler and optimizer must be plain JSON values",
            got={"not plain": _strange(values, path="run"), "error": str(error)},
            remedy="let state_dict() give lists, dicts, numbers, strings, booleans and None",
        )
        raise ValueError(message) from error


def _strange(value: Any, *, path: str) -> str | None:
    """Give the place of the first value that is not plain."""
    if isinstance(value, dict):
        parts = [(each, f"{path}.{key}") for key, each in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(each, f"{path}[{number}]") for number, each in enumerate(value)]
    else:
        plain = value is None or isinstance(value, str | int | float | bool)
        return None if plain else f"{path} ({type(value).__name__})"
    return next((hit for each, at in parts if (hit := _strange(each, path=at)) is not None), None)
