"""What a base makes of a text: states for memory tokens to start from."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memtx.checks import require, require_positive
from memtx.modes import evaluating


@torch.no_grad()
def text_states(
    *, model: Any, rows: Sequence[list[int]], layer: int
) -> Float[Tensor, "tokens dim"]:
    """Give the stream that goes into a layer at each token of a text, at length 1 per number.

    Each state is divided by its root mean square, as norms before readers do, so that a bank of
    them starts as long as one of `Normal(std=1.0)`.

    Args:
        model: a Hugging Face causal language model, without memory.
        rows: token ids of each row of the text; each is read by itself.
        layer: number of the layer, from 0.

    Raises:
        ValueError: if there is no row, one is empty, or there is no such layer.

    Source: caches that start from a text's own states (Cartridges, arXiv 2506.06266).
    """
    depth: int = model.config.get_text_config().num_hidden_layers
    require(
        ok=bool(rows) and all(len(row) > 0 for row in rows) and 0 <= layer < depth,
        owner="text_states",
        rule=f"there must be rows with tokens, and layer must be from 0 to {depth - 1}",
        got={"rows": len(rows), "empty": sum(not row for row in rows), "layer": layer},
        remedy="pass token ids and a layer of the model",
    )
    found = []
    with evaluating(model):
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            found.append(out.hidden_states[layer][0].float())
    states = torch.cat(found)
    return states / states.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)


def evenly_spaced(
    states: Float[Tensor, "tokens dim"], *, num_rows: int
) -> Float[Tensor, "num_rows dim"]:
    """Give states at even distances in the text; some twice where it has fewer.

    Args:
        states: in the order of the text.
        num_rows: how many.

    Raises:
        ValueError: if `num_rows` is below 1 or there is no state.

    Example:
        >>> import torch
        >>> evenly_spaced(torch.arange(6.0)[:, None], num_rows=3).flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    _check(states, num_rows=num_rows, owner="evenly_spaced")
    places = torch.arange(num_rows, device=states.device) * len(states) // num_rows
    return states[places]


def centres(
    states: Float[Tensor, "tokens dim"], *, num_rows: int, iterations: int, seed: int
) -> Float[Tensor, "num_rows dim"]:
    """Give the centres of groups of like states, by k-means from states drawn at random.

    A group that gets empty keeps its centre. Where there are fewer states than groups, the first
    rows are the states and the others are repetitions of them.

    Args:
        states: in any order.
        num_rows: how many groups.
        iterations: how often centres move.
        seed: decides the states that centres start from.

    Raises:
        ValueError: if `num_rows` or `iterations` is below 1, or there is no state.

    Source: Lloyd 1982.

    Example:
        >>> import torch
        >>> one, other = torch.zeros(3, 2), torch.ones(3, 2)
        >>> found = centres(torch.cat([one, other]), num_rows=2, iterations=5, seed=0)
        >>> sorted(found.tolist())
        [[0.0, 0.0], [1.0, 1.0]]
    """
    _check(states, num_rows=num_rows, owner="centres")
    require_positive(owner="centres", sizes={"iterations": iterations})
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(states), generator=generator)
    drawn = order[torch.arange(num_rows) % len(states)].to(states.device)
    middle = states[drawn].clone()
    for _ in range(iterations):
        nearest = torch.cdist(states, middle).argmin(dim=1)
        sums = torch.zeros_like(middle).index_add_(0, nearest, states)
        counts = torch.bincount(nearest, minlength=num_rows)[:, None]
        middle = torch.where(counts > 0, sums / counts.clamp(min=1), middle)
    return middle


def _check(states: Tensor, *, num_rows: int, owner: str) -> None:
    require(
        ok=num_rows >= 1 and states.ndim == 2 and len(states) > 0,
        owner=owner,
        rule="num_rows must be at least 1, and states a matrix with at least one row",
        got={"num_rows": num_rows, "states": tuple(states.shape)},
        remedy="pass what text_states gives",
    )
