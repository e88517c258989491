"""The models that recall associations: what each is made of, and that they run and learn."""

import pytest
import torch

from factories.associative_recall import follow_the_delta_rule, full, quick
from memtx import (
    DecayingTensorMemory,
    LinearMemoryAttention,
    SelfAttention,
    TensorMemory,
    load,
    save,
)
from memtx.ops.tensor_memory import features

KINDS = (LinearMemoryAttention, SelfAttention)
BEFORE = (DecayingTensorMemory, 0.001, False)
EXPECTED = {
    "delta": [BEFORE, (TensorMemory, 1.0, True)],
    "plain, then delta": [BEFORE, (TensorMemory, 1.0, False)],
    "the same, wide": [BEFORE, (TensorMemory, 1.0, False)],
    "plain": [BEFORE, (TensorMemory, 1.0, False)],
    "decaying": [BEFORE, (DecayingTensorMemory, 0.995, False)],
    "delta alone": [(TensorMemory, 1.0, True), (TensorMemory, 1.0, True)],
    "softmax": [None, None],
    "softmax behind": [BEFORE, None],
}


def heads_of(model):
    found = []
    for part in (part for part in model.modules() if isinstance(part, KINDS)):
        if isinstance(part, SelfAttention):
            found.append(None)
            continue
        (head,) = part.memory.memories
        found.append((type(head), head.decay, head.config.use_delta_rule))
    return found


@pytest.mark.parametrize("size", [quick, full])
def test_models_are_of_two_layers_of_the_heads_said(size):
    comparison = size()
    with torch.device("meta"):
        models = {name: compose() for name, compose in comparison.models.items()}
    assert {name: heads_of(model) for name, model in models.items()} == EXPECTED
    assert list(comparison.learning_rates) == list(models)
    count = {name: sum(p.numel() for p in each.parameters()) for name, each in models.items()}
    extra = 4 * comparison.models["delta"]().embedding.dim ** 2
    narrow = [number for name, number in count.items() if name != "the same, wide"]
    assert max(narrow) / min(narrow) < 1.05
    assert 0 < count["the same, wide"] - count["plain"] - extra < 1_000


def test_full_size_is_the_usual_one():
    comparison = full()
    with torch.device("meta"):
        model = comparison.models["delta"]()
    assert (comparison.vocab_size, model.embedding.dim) == (8_192, 128)
    assert comparison.num_pairs[-1] == 64
    assert comparison.num_pairs[-1] * comparison.tokens_per_pair == 512


@pytest.mark.parametrize("name", EXPECTED)
def test_every_parameter_learns(name):
    model = quick().models[name]()
    ids = torch.randint(128, (4, 24))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_rule_can_be_exchanged_and_is_saved(tmp_path):
    model = quick().models["plain, then delta"]().eval()
    delta = quick().models["delta"]().eval()
    delta.load_state_dict(model.state_dict())
    follow_the_delta_rule(model)
    assert heads_of(model) == EXPECTED["delta"]
    ids = torch.randint(128, (2, 24))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, delta(input_ids=ids).logits)
        save(model, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model").eval()(input_ids=ids).logits, logits)


@torch.no_grad()
def test_the_first_layer_reads_the_token_before():
    attention = quick().models["delta"]().layers[0].attention
    x = torch.randn(1, 9, 64)
    # The value of the token before, whatever its key, but for the thousandth of what is older.
    expected = attention.o_proj(attention.v_proj(x[:, :-1]))
    assert (attention(x)[:, 1:] - expected).norm() / expected.norm() < 0.02


@torch.no_grad()
def test_models_start_so_that_tokens_and_keys_are_told_apart():
    """Neither a token in the stream nor a key's features are lost in what all have in common."""
    model = quick().models["delta"]().eval()
    ids = torch.arange(100)[None]
    tokens = model.embedding(ids)[0] * model.embedding.dim**0.5
    assert 0.7 < tokens.square().mean().sqrt() < 0.9
    attention = model.layers[1].attention
    keys = features(attention.k_proj(torch.randn(100, 64)))
    usual = features(attention.k_proj(torch.randn(100, 64)) / 6.0)

    def alike(x):
        x = torch.nn.functional.normalize(x, dim=-1)
        return (x @ x.mT).triu(1).sum() / (100 * 99 / 2)

    assert alike(keys) < 0.6
    assert alike(usual) > 0.75


@torch.no_grad()
@pytest.mark.parametrize("name", ["softmax", "softmax behind"])
def test_layers_of_softmax_start_as_loud_as_tokens(name):
    model = quick().models[name]().eval()
    stream = model.embedding(torch.arange(100)[None])
    for layer in model.layers:
        for sublayer in layer.sublayers:
            added = sublayer(stream, None) - stream
            assert 0.1 < added.square().mean().sqrt() / stream.square().mean().sqrt() < 3.0
