"""Training moves the memory and nothing else, with and without recomputation."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from memtx import MemoryLibrary, Site
from tests.adapters.bases import (
    VOCABULARY,
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
from tests.adapters.libraries import PLACES, memory


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


def loop(model, folder, options):
    """One step of the loop of transformers at no learning rate: its loss, as it is logged."""
    ids = torch.randint(2, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        learning_rate=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return {name: trainer.state.log_history[0][name] for name in ("loss", "grad_norm")}


WHOLE, IN_PARTS = (
    {"per_device_train_batch_size": 4},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
)


def test_the_loop_of_transformers_has_the_loss_of_the_base(tmp_path):
    """It counts labels by what kind of loss a model says it has."""
    base = llama()
    wanted = loop(base, tmp_path, WHOLE)["loss"]
    adapter = fresh_adapter(base, Site.AFTER_MLP)
    for options in (WHOLE, IN_PARTS):
        assert loop(adapter, tmp_path, options)["loss"] == pytest.approx(wanted, abs=1e-5)
    library = MemoryLibrary(base=adapter.remove(), memories={"anna": memory(PLACES, 7)})
    assert library.loss_type == adapter.loss_type == base.loss_type
    library.activate("anna")
    losses = [loop(library, tmp_path, options) for options in (WHOLE, IN_PARTS)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False, "every_n_layers": 2}])
def test_the_loop_of_transformers_recomputes(tmp_path, kwargs):
    adapter = working_adapter(llama(), Site.AFTER_ATTENTION)
    wanted = loop(adapter, tmp_path, WHOLE)
    calls = count_calls(adapter.base.model.layers[0].mlp)
    skipped = count_calls(adapter.base.model.layers[1].mlp)
    checkpoints = {"activation_checkpointing": True, "activation_checkpointing_kwargs": kwargs}
    assert loop(adapter, tmp_path, WHOLE | checkpoints) == pytest.approx(wanted, rel=1e-5)
    assert (len(calls), len(skipped)) == (2, 1 if kwargs else 2)
    adapter.activation_checkpointing_disable()


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


@pytest.mark.slow
# dynamo looks at the gradients of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@each_site
def test_a_compiled_model_that_is_recomputed_has_its_gradients(site):
    """A checkpoint may break the graph, and what is compiled then has layers apart."""
    adapter, ids = working_adapter(llama(), site).train(), token_ids(2, 5)
    wanted = gradients(adapter, ids)
    adapter.activation_checkpointing_enable()
    torch._dynamo.reset()
    adapter.zero_grad()
    compiled = torch.compile(adapter, backend="aot_eager")
    compiled(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in adapter.named_memory_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
