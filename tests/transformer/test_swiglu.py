"""SwiGLU: Llama's own MLP with the same weights, and maps that do not meet."""

import re

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from memtx import SwiGLU
from tests.parts import linear


def test_is_the_mlp_of_llama():
    part = SwiGLU(gate_proj=linear(8, 12), up_proj=linear(8, 12), down_proj=linear(12, 8))
    other = LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2))
    other.load_state_dict(part.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(part(x), other(x))
    assert part.dim == 8


@pytest.mark.parametrize(
    ("gate", "up", "down"),
    [
        ((8, 12), (8, 11), (12, 8)),
        ((8, 12), (7, 12), (12, 8)),
        ((8, 12), (8, 12), (11, 8)),
        ((8, 12), (8, 12), (12, 7)),
    ],
)
def test_maps_that_do_not_meet(gate, up, down):
    text = (
        "SwiGLU: gate_proj and up_proj map [dim, inner] and down_proj maps [inner, dim], "
        f"got gate_proj={gate}, up_proj={up}, down_proj={down}; give the three maps"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        SwiGLU(gate_proj=linear(*gate), up_proj=linear(*up), down_proj=linear(*down))
