"""Several threads may ask one model at once, each as if it were alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from transformers import LlamaForCausalLM

from memtx import RollingRouting, Site, TokenRouting
from memtx.adapters.threads import Here
from tests import routing
from tests.adapters.bases import each_site, llama, logits, tiny_base, token_ids, working_adapter
from tests.adapters.libraries import CLOSE, alone, by_rows, routed, usual

SECONDS = 20


def meeting_inside(model, threads):
    """Let so many threads wait for each other in a layer, between its attention and its MLP."""
    barrier = threading.Barrier(threads)

    def wait(module, inputs):
        barrier.wait(SECONDS)

    return model.base.model.layers[0].mlp.register_forward_pre_hook(wait)


def at_once(model, calls):
    """What calls give that are inside the same layer at the same time."""
    handle = meeting_inside(model, len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        given = [each.result(SECONDS) for each in [pool.submit(call) for call in calls]]
    handle.remove()
    return given


@each_site
def test_forwards_of_several_threads_do_not_meet(site):
    adapter = working_adapter(tiny_base(LlamaForCausalLM), site)
    texts = [token_ids(2, length) for length in (3, 6, 9)]
    wanted = [logits(adapter, ids) for ids in texts]
    given = at_once(adapter, [partial(logits, adapter, ids) for ids in texts])
    for mine, alone_ in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, alone_, **CLOSE)


@pytest.mark.parametrize("strategy", [RollingRouting(window=3), TokenRouting()])
def test_routers_of_several_threads_choose_for_their_own_tokens(strategy):
    places = [(0, Site.AFTER_ATTENTION), (2, Site.AFTER_MLP)]
    adapter = routing.adapter(llama(), strategy, sites=places, losses=routing.balance())
    texts = [token_ids(2, length) for length in (4, 7)]

    def ask(ids):
        out = adapter(input_ids=ids, labels=ids)
        return out.logits, out.loss

    wanted = [ask(ids) for ids in texts]
    given = at_once(adapter, [partial(ask, ids) for ids in texts])
    for mine, alone_ in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, alone_, **CLOSE)


def test_each_thread_switches_for_itself():
    adapter, ids = working_adapter(llama(), Site.AFTER_ATTENTION), token_ids(2, 5)
    on = logits(adapter, ids)
    with adapter.disabled():
        off = logits(adapter, ids)

    def ask(switched_off):
        with adapter.disabled() if switched_off else nullcontext():
            return logits(adapter, ids), adapter.is_enabled()

    for order in ((True, False, True), (False, True)):
        given = at_once(adapter, [partial(ask, it) for it in order])
        assert [enabled for _, enabled in given] == [not it for it in order]
        for (mine, _), switched_off in zip(given, order, strict=True):
            torch.testing.assert_close(mine, off if switched_off else on, **CLOSE)
    assert adapter.is_enabled()


def test_rows_of_several_threads_read_their_own_memories():
    library, ids = usual(), token_ids(2, 5)
    requests = [["anna", None], ["bob", "anna"], [None, "team"]]
    library.activate("wide")
    wanted = [by_rows(library, rows, ids) for rows in requests] + [alone(library, "wide", ids)]
    calls = [partial(by_rows, library, rows, ids) for rows in requests]
    given = at_once(library, [*calls, partial(logits, library, ids)])
    for mine, alone_ in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, alone_, **CLOSE)


def test_what_is_read_in_another_thread_is_not_deleted():
    library = usual()
    inside, done = threading.Event(), threading.Event()

    def reading():
        with library.rows(["anna"]):
            inside.set()
            done.wait(SECONDS)

    thread = threading.Thread(target=reading)
    thread.start()
    inside.wait(SECONDS)
    with pytest.raises(ValueError, match=r"must not be active, got name='anna', active='anna'"):
        library.delete("anna")
    done.set()
    thread.join()
    library.delete("anna")


def test_a_memory_that_comes_while_rows_are_named_is_not_read_by_them():
    library, ids = usual(), token_ids(1, 5)
    wanted = by_rows(library, ["bob"], ids)
    with library.rows(["bob"]):
        library.add(name="late", memory=routed(TokenRouting(), []))
        library.activate("late")
        assert torch.equal(logits(library, ids), wanted)
    assert library.active == "late"
    assert (logits(library, ids) - wanted).abs().max() > 0.1


def test_a_backward_pass_of_another_thread_recomputes_the_forward():
    """As the engine of torch runs it on a GPU."""
    library, rows, ids = usual().train(), ["anna", None, "bob"], token_ids(3, 5)

    def gradients():
        library.zero_grad()
        loss = library(input_ids=ids, labels=ids, memories=rows).loss
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        return {n: p.grad for n, p in library.named_memory_parameters() if p.grad is not None}

    wanted = gradients()
    assert len(wanted) > 10
    library.activation_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("forward_off", [True, False])
def test_a_layer_is_recomputed_as_it_was_switched(forward_off):
    adapter = working_adapter(llama(), Site.AFTER_ATTENTION).train()
    embedded = adapter.base.get_input_embeddings()(token_ids(2, 5)).detach().requires_grad_()

    def gradient():
        embedded.grad = None
        with adapter.disabled() if forward_off else nullcontext():
            out = adapter(inputs_embeds=embedded).logits.square().sum()
        with nullcontext() if forward_off else adapter.disabled():
            out.backward()
        return embedded.grad

    wanted = gradient()
    adapter.activation_checkpointing_enable()
    torch.testing.assert_close(gradient(), wanted, **CLOSE)


def test_a_copy_made_while_switched_off_reads():
    adapter, ids = working_adapter(llama(), Site.AFTER_MLP), token_ids(2, 5)
    with adapter.disabled():
        copied = copy.deepcopy(adapter)
    assert copied.is_enabled()
    assert torch.equal(logits(copied, ids), logits(adapter, ids))


def test_values_are_kept_for_a_block():
    here = Here()
    with pytest.raises(RuntimeError), here.keeping("x", 1, default=0):
        assert here.get("x", 0) == 1
        assert copy.deepcopy(here).get("x", 0) == 0
        raise RuntimeError
    assert here.get("x", 0) == 0
