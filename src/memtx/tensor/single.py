"""A memory by itself: reset, retrieve, update; and what it says of a head."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from memtx.checks import require
from memtx.expression import component
from memtx.ops.tensor_memory import HeadRules, chunk_for, retrieve, tensor_memory
from memtx.tensor.config import SMALLEST, TensorMemoryConfig
from memtx.tensor.state import TensorMemoryState


@final
@component
class TensorMemory:
    """A tensor-product memory: values added to a state under their keys.

    As a head of a `MultiHeadMemory` it says which rule the head follows. By itself it holds a
    state of its own, one for each sequence of the batch of its first update.

    Args:
        config: its values.

    Raises:
        ValueError: if `config` is none.

    Source: `TensorMemory` of the tensor-product source, with a state for each sequence, and
    `S` and `z` summed alike: the source divides `S` by `batch * seq` and `z` by `batch`.

    Example:
        >>> import torch
        >>> from memtx import TensorMemory, TensorMemoryConfig
        >>> memory = TensorMemory(TensorMemoryConfig(
        ...     dim=2, eps=1e-6, use_delta_rule=True, max_delta=10.0, max_memory=100.0,
        ...     max_norm=1000.0))
        >>> memory.reset()
        >>> memory.update(torch.ones(1, 1, 2), torch.tensor([[[3.0, 4.0]]]))
        >>> memory.retrieve(torch.ones(1, 1, 2)).round(decimals=3).tolist()
        [[[3.0, 4.0]]]
    """

    def __init__(self, config: TensorMemoryConfig) -> None:
        _require_config(self, config)
        self.config = config
        self._held = _Held(owner=self)

    @property
    def decay(self) -> float:
        """Share of the state that stays when a token is written: all of it."""
        return 1.0

    @property
    def state(self) -> TensorMemoryState | None:
        """What it holds, with one head; None before the first update."""
        return self._held.state

    def reset(self, device: torch.device | None = None) -> None:
        """Empty the memory. It must be called once before the memory is used.

        Args:
            device: where it shall live; None for where it lives, at first the CPU.
        """
        self._held.reset(device)

    def retrieve(
        self, query: Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "batch length dim"]:
        """Read with many queries; the memory does not change.

        Args:
            query: the queries.

        Raises:
            ValueError: before the first reset, or if width, batch or device differ.
        """
        return self._held.retrieve(query)

    def update(
        self, key: Float[Tensor, "batch length dim"], value: Float[Tensor, "batch length dim"]
    ) -> None:
        """Write token by token.

        Args:
            key: the keys.
            value: the values.

        Raises:
            ValueError: before the first reset, or if width, batch or device differ.
        """
        self._held.update(key, value)


@final
@component
class DecayingTensorMemory:
    """A tensor-product memory that forgets: its state shrinks whenever a token is written.

    Args:
        config: its values.
        decay: share of the state that stays when a token is written.

    Raises:
        ValueError: if `config` is none, or `decay` does not lie between 0 and 1.

    Source: `DecayingTensorMemory` of the tensor-product source, which decays at each update call
    and weighs what is written by `1 - decay`; here each token decays what came before it.

    Example:
        >>> import torch
        >>> from memtx import DecayingTensorMemory, TensorMemoryConfig
        >>> memory = DecayingTensorMemory(TensorMemoryConfig(
        ...     dim=2, eps=1e-6, use_delta_rule=False, max_delta=10.0, max_memory=100.0,
        ...     max_norm=1000.0), decay=0.5)
        >>> memory.reset()
        >>> memory.update(torch.ones(1, 2, 2), torch.tensor([[[0.0, 0.0], [3.0, 3.0]]]))
        >>> memory.retrieve(torch.ones(1, 1, 2)).round(decimals=3).tolist()
        [[[2.0, 2.0]]]
    """

    def __init__(self, config: TensorMemoryConfig, *, decay: float) -> None:
        _require_config(self, config)
        require(
            ok=isinstance(decay, float) and SMALLEST <= decay < 1.0,
            owner=self,
            rule="decay must lie between 0 and 1",
            got={"decay": decay},
            remedy="use TensorMemory for a memory that does not decay",
        )
        self.config = config
        self.decay = decay
        self._held = _Held(owner=self)

    @property
    def state(self) -> TensorMemoryState | None:
        """What it holds, with one head; None before the first update."""
        return self._held.state

    def reset(self, device: torch.device | None = None) -> None:
        """Empty the memory. It must be called once before the memory is used.

        Args:
            device: where it shall live; None for where it lives, at first the CPU.
        """
        self._held.reset(device)

    def retrieve(
        self, query: Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "batch length dim"]:
        """Read with many queries; the memory does not change.

        Args:
            query: the queries.

        Raises:
            ValueError: before the first reset, or if width, batch or device differ.
        """
        return self._held.retrieve(query)

    def update(
        self, key: Float[Tensor, "batch length dim"], value: Float[Tensor, "batch length dim"]
    ) -> None:
        """Write token by token.

        Args:
            key: the keys.
            value: the values.

        Raises:
            ValueError: before the first reset, or if width, batch or device differ.
        """
        self._held.update(key, value)


def _require_config(owner: object, config: object) -> None:
    require(
        ok=isinstance(config, TensorMemoryConfig),
        owner=owner,
        rule="config must be a TensorMemoryConfig",
        got={"config": config},
        remedy="make one of its six values",
    )


def rules_of(
    memories: Sequence[TensorMemory | DecayingTensorMemory], device: torch.device
) -> HeadRules:
    """Gather the numbers of heads.

    Args:
        memories: the heads.
        device: where the numbers are needed.
    """
    rows = [
        (
            memory.decay,
            float(memory.config.use_delta_rule),
            memory.config.eps,
            memory.config.max_delta,
            memory.config.max_memory,
            memory.config.max_norm,
        )
        for memory in memories
    ]
    # Kept for later calls: not as tensors of an inference mode, which no gradient could pass.
    with torch.inference_mode(False):
        table = torch.tensor(rows, dtype=torch.float32, device=device).unbind(dim=1)
    decay, delta, eps, max_delta, max_memory, max_norm = table
    return HeadRules(
        decay=decay,
        delta=delta,
        eps=eps,
        max_delta=max_delta,
        max_memory=max_memory,
        max_norm=max_norm,
        decays=any(memory.decay != 1.0 for memory in memories),
        deltas=any(memory.config.use_delta_rule for memory in memories),
    )


class _Held:
    """The state of a memory by itself, which two classes share by holding it."""

    def __init__(self, *, owner: TensorMemory | DecayingTensorMemory) -> None:
        self.owner = owner
        self.device: torch.device | None = None
        self.state: TensorMemoryState | None = None

    def reset(self, device: torch.device | None) -> None:
        self.device = device or self.device or torch.device("cpu")
        self.state = None

    def retrieve(self, query: Tensor) -> Tensor:
        self.check(query)
        # Nothing is written yet, so there is nothing to read, whatever the batch will be.
        if self.state is None:
            return torch.zeros_like(query)
        rules = rules_of([self.owner], query.device)
        return retrieve(query[:, :, None], self.state.memory, self.state.norm, rules)[:, :, 0]

    def update(self, key: Tensor, value: Tensor) -> None:
        self.check(key)
        require(
            ok=value.shape == key.shape,
            owner=self.owner,
            rule="each key must have a value of its width",
            got={"key": tuple(key.shape), "value": tuple(value.shape)},
            remedy="pass both as [batch, length, dim]",
        )
        memory, norm = (self.state.memory, self.state.norm) if self.state else (None, None)
        keys, values = key[:, :, None], value[:, :, None]
        _, memory, norm = tensor_memory(
            keys,
            keys,
            values,
            rules_of([self.owner], key.device),
            memory,
            norm,
            None,
            None,
            chunk_for(key.shape[1], key.shape[2]),
            True,
        )
        if memory is not None and norm is not None:
            self.state = TensorMemoryState(memory=memory, norm=norm)

    def check(self, x: Tensor) -> None:
        require(
            ok=self.device is not None,
            owner=self.owner,
            rule="the memory must be reset before it is used",
            got={"state": None},
            remedy="call reset(device) once",
        )
        dim = self.owner.config.dim
        require(
            ok=x.ndim == 3 and x.shape[-1] == dim,
            owner=self.owner,
            rule=f"queries, keys and values must have the memory's dim {dim}",
            got={"shape": tuple(x.shape)},
            remedy="pass [batch, length, dim]",
        )
        if self.state is not None:
            self.state.check(owner=self.owner, batch=x.shape[0], heads=1, dim=dim, device=x.device)
        require(
            ok=self.device is None or x.device.type == self.device.type,
            owner=self.owner,
            rule=f"the inputs must be on the memory's device {str(self.device)!r}",
            got={"device": str(x.device)},
            remedy="reset(device) with the inputs' device",
        )
