"""Training a routed memory: the losses of its routers, and layers that are recomputed."""

import copy
import re

import pytest
import torch

from memtx import LoadBalanceLoss, RouterZLoss, Site, TokenRouting
from tests import routing
from tests.adapters.bases import llama, token_ids
from tests.routing import STRATEGIES

PLACES = [(0, Site.AFTER_ATTENTION), (1, Site.AFTER_MLP), (2, Site.AFTER_ATTENTION)]
LOSSES = [LoadBalanceLoss(weight=0.5), RouterZLoss(weight=0.25)]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def adapter_of(strategy):
    return routing.adapter(llama(), strategy, sites=PLACES, losses=LOSSES).train()


def labelled(batch, length, *, start):
    ids = token_ids(batch, length)
    return {"input_ids": ids, "labels": torch.where(torch.arange(length) < start, -100, ids)}


def gradients(adapter, batches):
    """Of the sum of losses: all forwards come before the backward pass."""
    adapter.zero_grad()
    torch.stack([adapter(**batch).loss for batch in batches]).sum().backward()
    return {name: p.grad.clone() for name, p in adapter.named_memory_parameters()}


@each_strategy
def test_router_losses_are_added_where_there_are_labels(strategy):
    adapter, batch = adapter_of(strategy), labelled(2, 8, start=3)
    output = adapter(**batch)
    scores, ids = output.logits[:, 2:-1], batch["input_ids"]
    text = torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 3:].ravel())
    found = adapter.halves().router_losses()
    assert list(found) == ["LoadBalanceLoss(0.5)", "RouterZLoss(0.25)"]
    (balance, half), (z, quarter) = found.values()
    assert (half, quarter) == (0.5, 0.25)
    assert balance.item() > 3 * 0.9  # about 1 for each of three routers
    torch.testing.assert_close(output.loss, text + 0.5 * balance + 0.25 * z)
    assert adapter(input_ids=ids).loss is None


def test_a_plain_tuple_has_the_router_losses_too():
    adapter, batch = adapter_of(TokenRouting()), labelled(2, 8, start=3)
    wanted = adapter(**batch)
    loss, scores = adapter(**batch, return_dict=False)[:2]
    assert torch.equal(loss, wanted.loss)
    assert torch.equal(scores, wanted.logits)


def test_router_losses_of_forwards_that_are_added_up_are_a_mean_by_their_labels():
    """As `Trainer` of transformers adds them up, which gives the number of labels in all."""
    adapter = adapter_of(TokenRouting())
    batches = [labelled(2, 8, start=3), labelled(2, 6, start=0)]
    means = [adapter.base(**batch).loss for batch in batches]
    losses = [adapter(**batch).loss - mean for batch, mean in zip(batches, means, strict=True)]
    given = sum(
        adapter(**batch, num_items_in_batch=20).loss
        - adapter.base(**batch, num_items_in_batch=20).loss
        for batch in batches
    )
    torch.testing.assert_close(given, losses[0] * 10 / 20 + losses[1] * 10 / 20)
    assert adapter(**batches[0], num_items_in_batch=10).loss == adapter(**batches[0]).loss


def test_router_losses_of_a_memory_that_is_off_are_none():
    adapter, batch = adapter_of(TokenRouting()), labelled(2, 8, start=3)
    plain = adapter.base(**batch).loss
    adapter(**batch)
    with adapter.disabled():
        assert torch.equal(adapter(**batch).loss, adapter.base(**batch).loss)
        assert adapter.halves().router_losses() == {}
    assert not torch.equal(plain, adapter(**batch).loss)


@each_strategy
def test_halves_tell_the_routers_where_prompts_end(strategy):
    adapter, batch = adapter_of(strategy).eval(), labelled(2, 8, start=3)
    with torch.no_grad():
        whole = adapter(**batch, use_cache=False).logits
        halves = adapter.halves()
        hidden = halves.hidden_states(**batch, attention_mask=None, position_ids=None)
    torch.testing.assert_close(halves.logits(hidden), whole)
    balance, _ = halves.router_losses()["LoadBalanceLoss(0.5)"]
    again = adapter.halves()
    with torch.no_grad():
        adapter(**batch)
    assert torch.equal(again.router_losses()["LoadBalanceLoss(0.5)"][0], balance)


@each_strategy
def test_checkpointing_changes_no_gradient_whatever_came_between(strategy):
    """Forwards of other shapes and prompts may come between a forward and its recomputation."""
    adapter = adapter_of(strategy)
    batches = labelled(2, 9, start=4), labelled(3, 7, start=0), labelled(2, 9, start=2)
    wanted = gradients(adapter, batches)
    adapter.gradient_checkpointing_enable()
    given = gradients(adapter, batches)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(given[name], gradient, rtol=1e-5, atol=1e-6)
    # What was noted of the last forward was not noted again.
    assert len(adapter.halves().router_losses()) == 2
    assert len(adapter._reading.context.routings) == len(PLACES)
    twin = copy.deepcopy(adapter)
    torch.testing.assert_close(gradients(twin, batches), wanted, rtol=1e-5, atol=1e-6)
    adapter.gradient_checkpointing_disable()
    torch.testing.assert_close(gradients(adapter, batches), wanted, rtol=1e-6, atol=1e-7)


def test_another_context_of_the_checkpoints_is_kept():
    from torch.utils.checkpoint import noop_context_fn

    adapter, calls = adapter_of(TokenRouting()), []

    def contexts():
        calls.append(1)
        return noop_context_fn()

    adapter.gradient_checkpointing_enable({"context_fn": contexts})
    gradients(adapter, [labelled(1, 5, start=0)])
    assert len(calls) == 3  # layers of the base


def test_checkpoints_with_reentry_are_refused():
    message = (
        "MemoryAdapter: gradient checkpointing must be without reentry where a memory is routed: "
        "with it a forward keeps no gradient for the losses of routers, got use_reentrant=True; "
        "leave use_reentrant out, or pass False."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        adapter_of(TokenRouting()).gradient_checkpointing_enable({"use_reentrant": True})


def test_checkpoints_that_the_adapter_knows_nothing_of_are_refused():
    adapter = adapter_of(TokenRouting())
    base = adapter.base
    new = getattr(base, "activation_checkpointing_enable", None)
    (new or base.gradient_checkpointing_enable)({"use_reentrant": False})
    message = (
        "MemoryAdapter: a recomputation must know which forward it repeats, got gradient "
        "checkpointing that was not switched on by the adapter; call the adapter's "
        "gradient_checkpointing_enable() instead of the base's."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        gradients(adapter, [labelled(1, 5, start=0)])


def test_ten_steps_teach_and_balance():
    adapter = adapter_of(STRATEGIES["hybrid"])
    batch = labelled(4, 10, start=4)
    optimizer = torch.optim.AdamW(adapter.memory_parameters(), lr=3e-2, weight_decay=0.0)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        output = adapter(**batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(p.grad is None for p in adapter.base.parameters())
