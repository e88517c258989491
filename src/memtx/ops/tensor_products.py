"""Products of many matrices at once, whose sums are wider than what is multiplied."""

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply matrices of one dtype, summing in float32, into a dtype that is not narrower.

    Args:
        a: `[..., rows, middle]`.
        b: `[..., middle, columns]`.
        dtype: of the result.
    """
    left, right = a.flatten(0, -3), b.flatten(0, -3)
    if a.dtype == dtype:
        result = torch.bmm(left, right)
    elif a.is_cuda:
        result = torch.bmm(left, right, out_dtype=dtype)
    else:
        result = torch.bmm(left.to(dtype), right.to(dtype))
    return torch.unflatten(result, 0, a.shape[:-2])


def add_product(total: Tensor, a: Tensor, b: Tensor, *, sign: float) -> None:
    """Add a product of matrices, or take it off, in one step that makes no product by itself.

    Args:
        total: `[..., rows, columns]`, contiguous, in a dtype that is not narrower; changed.
        a: `[..., rows, middle]`.
        b: `[..., middle, columns]`, rounded to the dtype of `a`.
        sign: 1 or -1.
    """
    right = b.to(a.dtype)
    if torch.compiler.is_compiling():  # a compiler joins the two steps by itself
        total.add_(product(a, right, total.dtype), alpha=sign)
        return
    sums = total.view(-1, *total.shape[-2:])
    left, right = a.flatten(0, -3), right.flatten(0, -3)
    if a.dtype == total.dtype:
        sums.baddbmm_(left, right, alpha=sign)
    elif a.is_cuda:
        torch.baddbmm(sums, left, right, out_dtype=total.dtype, alpha=sign, out=sums)
    else:
        sums.baddbmm_(left.to(total.dtype), right.to(total.dtype), alpha=sign)
