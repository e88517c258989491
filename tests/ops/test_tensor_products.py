"""Products of many matrices, alone and added to a sum."""

import pytest
import torch

from memtx.ops.tensor_products import add_product, product


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_are_summed_wide(dtype):
    wide = torch.promote_types(dtype, torch.float32)
    a, b = torch.randn(2, 3, 5, 300).to(dtype), torch.randn(2, 3, 300, 4).to(dtype)
    exact = a.double() @ b.double()
    given = product(a, b, wide)
    assert given.dtype == wide
    torch.testing.assert_close(given.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_product_is_added_in_place(dtype, sign):
    wide = torch.promote_types(dtype, torch.float32)
    a, b = torch.randn(2, 3, 5, 6).to(dtype), torch.randn(2, 3, 4, 6).to(dtype).mT
    total = torch.randn(2, 3, 5, 4, dtype=wide)
    wanted = total + sign * product(a, b, wide)
    add_product(total, a, b, sign=sign)
    torch.testing.assert_close(total, wanted)


def test_what_is_multiplied_is_rounded_to_the_narrower_dtype():
    a, b = torch.ones(1, 2, 2, dtype=torch.bfloat16), torch.full((1, 2, 2), 1.0 + 2.0**-10)
    total = torch.zeros(1, 2, 2)
    add_product(total, a, b, sign=1.0)
    assert torch.equal(total, torch.full((1, 2, 2), 2.0))
