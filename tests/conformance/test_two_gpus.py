"""A base that `device_map` spreads over two GPUs: each reader computes beside its layer."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conformance.adapters import fresh, working
from tests.conformance.families import CASES, logits, token_ids

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def spread(case, folder):
    """A base saved and loaded again: the first half of it on one GPU, the rest on another."""
    base = case.base()
    base.save_pretrained(folder)
    stem = next(name for name, module in base.named_children() if hasattr(module, "layers"))
    inner = base.get_submodule(stem)
    half = len(inner.layers) // 2
    # A head that is tied lies where the embedding does.
    head = 0 if base.config.tie_word_embeddings else 1
    places = dict.fromkeys((name for name, _ in base.named_children() if name != stem), head)
    places |= {f"{stem}.{name}": 1 for name, _ in inner.named_children() if name != "layers"}
    embedding = next(n for n, m in inner.named_children() if isinstance(m, torch.nn.Embedding))
    places[f"{stem}.{embedding}"] = 0
    places |= {f"{stem}.layers.{n}": int(n >= half) for n in range(len(inner.layers))}
    return base, AutoModelForCausalLM.from_pretrained(folder, device_map=places)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_memory_follows_the_layers_over_two_gpus(case, tmp_path):
    plain, base = spread(case, tmp_path / "base")
    one = working(case, plain)
    ids = token_ids(2, 8)
    wanted = logits(one, ids)
    two = fresh(case, base)
    two.load_state_dict(one.state_dict())
    assert {p.device.index for p in two.insertions.parameters()} == {0, 1}
    ids = ids.to("cuda:0")
    given = logits(two, ids).cpu()
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-3)
    loss = two(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    one(input_ids=ids.cpu(), labels=ids.cpu(), use_cache=False).loss.backward()
    for (name, own), (_, other) in zip(
        one.named_memory_parameters(), two.named_memory_parameters(), strict=True
    ):
        torch.testing.assert_close(
            other.grad.cpu(), own.grad, rtol=1e-2, atol=1e-3, msg=f"gradient of {name}"
        )
    answer = two.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert answer.shape == (2, 12)
