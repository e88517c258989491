"""Training moves the memory and nothing else, with and without recomputation."""

import copy

import pytest
import torch

from memtx import Site
from tests.adapters.bases import (
    each_architecture,
    each_site,
    expect_same,
    fresh_adapter,
    llama,
    logits,
    state_of,
    tiny_base,
    token_ids,
    working_adapter,
)


def ten_steps(adapter, ids):
    adapter.train()
    optimizer = torch.optim.AdamW(adapter.memory_parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = adapter(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    adapter.eval()
    return losses


@each_architecture
@each_site
def test_ten_steps_move_the_memory_and_not_the_base(architecture, site):
    base, ids = tiny_base(architecture), token_ids(2, 6)
    before, plain = state_of(base), logits(base, ids)
    adapter = fresh_adapter(base, site)
    memory = copy.deepcopy(dict(adapter.named_memory_parameters()))
    losses = ten_steps(adapter, ids)
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in adapter.named_memory_parameters():
        assert not torch.equal(parameter, memory[name]), name
    assert all(p.grad is None for p in base.parameters())
    with adapter.disabled():
        assert torch.equal(logits(adapter, ids), plain)
    adapter.remove()
    expect_same(state_of(base), before)
    assert torch.equal(logits(base, ids), plain)


def gradients(adapter, ids):
    adapter.zero_grad()
    adapter(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in adapter.named_memory_parameters()}


@each_architecture
@each_site
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(architecture, site, use_reentrant):
    adapter, ids = working_adapter(tiny_base(architecture), site).train(), token_ids(2, 6)
    calls = count_calls(adapter.base.model.layers[1].mlp)
    wanted = gradients(adapter, ids)
    assert len(calls) == 1
    adapter.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    given = gradients(adapter, ids)
    assert len(calls) == 3  # once forward, once again in the backward pass
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0.0, name
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-6)
    adapter.gradient_checkpointing_disable()
    assert gradients(adapter, ids).keys() == wanted.keys()
    assert len(calls) == 4


def count_calls(module):
    calls = []

    def count(module, inputs):
        calls.append(1)

    module.register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_leaves_no_hooks_behind(use_reentrant):
    base, ids = llama(), token_ids(1, 4)
    before = state_of(base)
    adapter = working_adapter(base, Site.AFTER_MLP).train()
    for _ in range(2):
        adapter.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        gradients(adapter, ids)
    adapter.gradient_checkpointing_disable()
    adapter.remove()
    assert state_of(base).hooks == before.hooks


def test_no_gradient_below_the_lowest_read():
    """With a frozen base nothing below the memory needs a backward pass, recomputed or not."""
    adapter, ids = working_adapter(llama(), Site.AFTER_MLP).train(), token_ids(1, 4)
    below = []

    def note(module, inputs, output):
        below.append(output.requires_grad)

    adapter.base.model.layers[0].mlp.register_forward_hook(note)
    gradients(adapter, ids)
    adapter.gradient_checkpointing_enable({"use_reentrant": False})
    gradients(adapter, ids)
    assert below
    assert not any(below)


def test_no_labels_no_loss_and_ignored_labels_do_not_count():
    adapter, ids = working_adapter(llama(), Site.AFTER_MLP), token_ids(2, 6)
    labels = ids.clone()
    labels[:, :4] = -100
    rest = adapter(input_ids=ids, labels=labels).loss
    own = adapter(input_ids=ids).logits[:, 3:-1]
    wanted = torch.nn.functional.cross_entropy(own.flatten(0, 1), ids[:, 4:].ravel())
    torch.testing.assert_close(rest, wanted)
