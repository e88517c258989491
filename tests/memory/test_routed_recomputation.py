"""A routed read that keeps no keys and values for its backward pass gives the same gradients."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from memtx.memory import routed_attention
from tests import routing
from tests.routing import DIM, MIXINGS, STRATEGIES, TOKENS

POOLED = {name: each for name, each in STRATEGIES.items() if name != "token"}
each_strategy = pytest.mark.parametrize("strategy", POOLED.values(), ids=POOLED)
each_mixing = pytest.mark.parametrize("mixing", MIXINGS.values(), ids=MIXINGS)


def outputs_and_gradients(read, x):
    """What it gives, all gradients, and how many bytes autograd keeps beside the parameters."""
    held = {}
    parameters = {each.untyped_storage().data_ptr() for each in read.parameters()}

    def keep(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            held[place] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = read(x)
    wanted = [x, *read.parameters()]
    upstream = torch.ones_like(output)
    gradients = torch.autograd.grad(output, wanted, upstream, allow_unused=True)
    return [output.detach(), *gradients], sum(held.values())


@each_mixing
@each_strategy
def test_gradients_are_the_same_and_less_is_kept(strategy, mixing, monkeypatch):
    read = routing.reader(strategy, mixing, {})
    x = torch.randn(2, 24, DIM, requires_grad=True)
    wanted, kept = outputs_and_gradients(read, x)
    monkeypatch.setattr(routed_attention, "MANY_LAID", 1)
    given, kept_less = outputs_and_gradients(read, x)
    for one, other in zip(given, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    # Keys and values of the chapters that are read, laid side by side or not, are gone.
    laid = sum(each.out_features for each in (read.k_proj, read.v_proj)) * TOKENS * 4
    segments = read.router(x).chapters.shape[:2].numel()
    assert kept - kept_less >= laid * 4 * segments


def test_dropout_is_the_same_in_both_passes(monkeypatch):
    read = routing.reader(STRATEGIES["rolling"], MIXINGS["joint"], {"dropout": 0.5}).train()
    x = torch.randn(2, 9, DIM, requires_grad=True)
    found = []
    for many in (2**27, 1):
        monkeypatch.setattr(routed_attention, "MANY_LAID", many)
        torch.manual_seed(5)
        found.append(outputs_and_gradients(read, x)[0])
    for one, other in zip(*found, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_few_chapters_are_kept_and_many_are_not(monkeypatch):
    read, x = routing.reader(STRATEGIES["rolling"], MIXINGS["joint"], {}), torch.randn(2, 6, DIM)
    again = []

    def noted(read, query, chapters, weights, segments, use_reentrant, preserve_rng_state):
        again.append((use_reentrant, preserve_rng_state))
        return read(query, chapters, weights, segments)

    monkeypatch.setattr(routed_attention, "checkpoint", noted)
    laid = 2 * 2 * 4 * TOKENS * 12  # rows, windows, chapters, tokens, widths of key and value
    monkeypatch.setattr(routed_attention, "MANY_LAID", laid + 1)
    read(x)
    assert not again
    monkeypatch.setattr(routed_attention, "MANY_LAID", laid)
    with torch.no_grad():
        read(x)
    assert not again
    read(x)
    assert again == [(False, False)]


def test_a_compiler_takes_it(monkeypatch):
    monkeypatch.setattr(routed_attention, "MANY_LAID", 1)
    read = routing.reader(STRATEGIES["rolling"], MIXINGS["joint"], {})
    x = torch.randn(2, 9, DIM, requires_grad=True)
    wanted, _ = outputs_and_gradients(read, x)
    compiled = torch.compile(read, backend="aot_eager", fullgraph=True)
    given = torch.autograd.grad(compiled(x).sum(), [x, *read.parameters()], allow_unused=True)
    for one, other in zip(given, wanted[1:], strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
