"""The state of all random numbers of this process, as plain JSON values."""

import random
from typing import Any

import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Give the state of Python's, numpy's and torch's generators, on CPU and device.

    Args:
        device: of this process.
    """
    import numpy as np

    legacy: Any = np.random.get_state(legacy=False)
    version, words, gauss = random.getstate()
    state = {
        "python": [version, list(words), gauss],
        "numpy": {
            **legacy,
            "state": {"key": legacy["state"]["key"].tolist(), "pos": int(legacy["state"]["pos"])},
        },
        "torch": _text(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device))
    return state


def set_random_state(state: dict[str, Any], *, device: torch.device) -> None:
    """Take up a state.

    Args:
        state: what `random_state` gave; one of a CPU leaves a GPU's as it is.
        device: of this process.
    """
    import numpy as np

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.asarray(state["numpy"]["state"]["key"], dtype=np.uint32)
    inner = {"key": key, "pos": state["numpy"]["state"]["pos"]}
    np.random.set_state({**state["numpy"], "state": inner})
    torch.set_rng_state(_bytes(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_bytes(state["cuda"]), device)


def _text(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
