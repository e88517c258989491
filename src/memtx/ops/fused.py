"""Compiling small functions where that pays: what goes over large tensors several times."""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def fused(function: Callable[..., Any], *, device: torch.device) -> Callable[..., Any]:
    """Give the function as few kernels where that pays and can be had, and else as it is.

    Args:
        function: a function of tensors, at the top level of a module.
        device: where the tensors are.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return function
    return _compiled(function) if _has_triton() else function


def outcome(result: Tensor) -> Tensor:
    """Give what the forward of a `torch.autograd.Function` returns.

    In a trace of torch 2.11 the gradient of a result that was changed in place, or that an
    operation gave back as it was (`to` its own dtype), is zero without a word; that of a new tensor
    is right.

    Args:
        result: what was computed.
    """
    return result.clone() if torch.compiler.is_compiling() else result


@cache
def _has_triton() -> bool:
    # Looked up once: a search of the path at every read would cost more than small reads do.
    return importlib.util.find_spec("triton") is not None


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
