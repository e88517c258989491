"""Rows of a bank whose gradient is as small as what was read."""

import itertools
from typing import Any, cast, final
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, library, nn

from memtx.checks import require
from memtx.interfaces import MemoryBank
from memtx.memory.bank import StandardMemoryBank
from memtx.memory.low_rank import FactorizedMemoryBank, ReducedDimMemoryBank


def row_parameter(bank: object) -> nn.Parameter:
    """Give the parameter of a bank that has a row for each memory token.

    Args:
        bank: the bank.

    Raises:
        ValueError: if the bank has none that could learn row by row.
    """
    if isinstance(bank, StandardMemoryBank | ReducedDimMemoryBank):
        return bank.tokens
    require(
        ok=isinstance(bank, FactorizedMemoryBank),
        owner="row_parameter",
        rule="the bank must have a parameter with a row for each memory token",
        got={"bank": type(bank).__name__},
        remedy="use a StandardMemoryBank, ReducedDimMemoryBank or FactorizedMemoryBank",
    )
    return cast("FactorizedMemoryBank", bank).coordinates


@final
class SparseRows:
    """The rows of a bank as one reader looks them up: their gradient is a sparse tensor of them.

    torch's compiler knows no sparse gradients. So under `torch.compile` the look-up is an operation
    of its own, whose backward keeps what came for the rows until the pass is over, and then adds it
    to the parameter's gradient. That is for `backward()`: `torch.autograd.grad` of a compiled model
    does not give it.

    Args:
        bank: the bank.

    Raises:
        ValueError: if the bank has no parameter with a row for each memory token.

    Source: torch's sparse embeddings.

    Example:
        >>> import torch
        >>> from memtx import Normal, StandardMemoryBank
        >>> bank = StandardMemoryBank(num_memory_tokens=8, dim=4, init=Normal(std=1.0))
        >>> SparseRows(bank=bank).look_up(torch.tensor([1, 5])).sum().backward()
        >>> bank.tokens.grad.coalesce().indices().tolist()
        [[1, 5]]
    """

    def __init__(self, *, bank: MemoryBank) -> None:
        self.bank = bank
        self.key = next(_KEYS)
        self.came: list[tuple[Tensor, Tensor]] = []
        self._end = nn.Parameter(torch.zeros(()))
        self._end.register_post_accumulate_grad_hook(self._hand_over)
        _READERS[self.key] = self

    def look_up(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        """Give rows of the bank, with the values of `bank.rows`.

        A row that is looked up twice stands twice in the gradient, until it is coalesced.

        Args:
            indices: which memory tokens, in any shape.
        """
        parameter = row_parameter(self.bank)
        there = indices.to(parameter.device)
        if torch.compiler.is_compiling() and parameter.requires_grad:
            found: Tensor = compiled_look_up(parameter.detach(), there, self._end, self.key)
        else:
            found = F.embedding(there, parameter, sparse=True)
        found = found.to(indices.device)
        if isinstance(self.bank, FactorizedMemoryBank):
            return F.linear(found, self.bank.directions.to(found.device))
        return found

    def _hand_over(self, end: Tensor) -> None:
        """Add what came for the rows to the gradient, once the backward pass is through."""
        parameter, came = row_parameter(self.bank), self.came
        self.came, end.grad = [], None
        for indices, values in came:
            # Known to hold; torch 2.11 would wait for the device to look.
            with torch.sparse.check_sparse_tensor_invariants(enable=False):
                sparse = torch.sparse_coo_tensor(indices.reshape(1, -1), values, parameter.shape)
            parameter.grad = sparse if parameter.grad is None else parameter.grad + sparse

    def __getstate__(self) -> dict[str, MemoryBank]:
        return {"bank": self.bank}

    def __setstate__(self, state: dict[str, MemoryBank]) -> None:
        self.__init__(bank=state["bank"])


_KEYS = itertools.count()
_READERS: WeakValueDictionary[int, SparseRows] = WeakValueDictionary()


@library.custom_op("memtx::look_up", mutates_args=())
def compiled_look_up(parameter: Tensor, indices: Tensor, end: Tensor, key: int) -> Tensor:  # noqa: ARG001
    """Give rows; `end` is where autograd goes on to, as the rows themselves ask for nothing.

    Args:
        parameter: a row for each memory token.
        indices: which rows, in any shape.
        end: a number of the reader's.
        key: which reader it is.
    """
    return F.embedding(indices, parameter)


@library.custom_op("memtx::keep_rows", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def keep_rows(values: Tensor, indices: Tensor, end: Tensor, key: int) -> Tensor:
    """Keep the gradient of rows for their reader, and give that of `end`.

    Args:
        values: gradient of what was looked up.
        indices: which rows those were.
        end: a number of the reader's.
        key: which reader it is.
    """
    # The compiler uses the memory of `values` again.
    _READERS[key].came.append((indices.clone(), values.reshape(-1, values.shape[-1]).clone()))
    return torch.zeros_like(end)


@compiled_look_up.register_fake
def _(parameter: Tensor, indices: Tensor, _end: Tensor, _key: int) -> Tensor:
    return parameter.new_empty(*indices.shape, parameter.shape[-1])


@keep_rows.register_fake
def _(_values: Tensor, _indices: Tensor, end: Tensor, _key: int) -> Tensor:
    return torch.empty_like(end)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    _, indices, end, ctx.key = inputs
    ctx.save_for_backward(indices, end)


def _backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, None]:
    indices, end = ctx.saved_tensors
    return None, None, keep_rows(gradient.contiguous(), indices, end, ctx.key), None


compiled_look_up.register_autograd(_backward, setup_context=_remember)
