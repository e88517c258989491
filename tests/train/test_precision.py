"""Arithmetic of the forward."""

import torch

from memtx.train import BFloat16Autocast, FullPrecision


def product(precision) -> torch.Tensor:
    with precision.context(torch.device("cpu")):
        return torch.ones(1, 1) @ torch.ones(1, 1)


def test_full_precision_leaves_dtypes_alone():
    assert product(FullPrecision()).dtype == torch.float32


def test_bfloat16_is_for_the_forward_only():
    assert product(BFloat16Autocast()).dtype == torch.bfloat16
    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
