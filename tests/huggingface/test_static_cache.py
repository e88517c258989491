"""Generation with a cache of fixed size, as compilers want it, is that with one that grows."""

import pytest
import torch
from transformers import CompileConfig

from memtx.generate import AsProjected, freeze_for_inference
from tests.huggingface.faces import MODELS, face_of
from tests.models.stacks import token_ids
from tests.routing import CAUSAL

NAMES = ["vanilla", "dense", *(f"routed by {name}" for name in CAUSAL)]
each_model = pytest.mark.parametrize("name", NAMES)


def generate(face, ids, mask, options):
    return face.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=7,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **options,
    )


def prompts(length):
    """Two prompts, the first padded on the left."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, : length // 2] = 0
    return token_ids(2, length), mask


@each_model
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_are_the_same(name, length, beams):
    face, (ids, mask) = face_of(MODELS[name]()), prompts(length)
    wanted = generate(face, ids, mask, {"num_beams": beams})
    static = {"num_beams": beams, "cache_implementation": "static"}
    assert torch.equal(generate(face, ids, mask, static), wanted)
    assert torch.equal(generate(face, ids, mask, static), wanted)


@pytest.mark.parametrize("name", ["dense", "routed by rolling", "routed by token"])
def test_a_compiled_step_serves_every_token(name):
    """In one graph, without a recompilation, and with the memory frozen."""
    face, (ids, mask) = face_of(MODELS[name]()), prompts(4)
    wanted = generate(face, ids, mask, {})
    compile_config = CompileConfig(fullgraph=True, mode="default", backend="aot_eager")
    compile_config._compile_all_devices = True  # else a GPU alone
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"cache_implementation": "static", "compile_config": compile_config}
    with freeze_for_inference(face, storage=AsProjected()):
        assert torch.equal(generate(face, ids, mask, options), wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
