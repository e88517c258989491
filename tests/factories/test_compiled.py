"""Whole models compile into one graph that serves every step of equal shape, of every factory."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from factories import associative_recall, from_scratch, mixture_of_chapters, tensor_memory
from memtx import RollingRouting, SequenceRouting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
VOCABULARY, LENGTH, STEPS = 64, 24, 3
SMALL = {"vocab_size": VOCABULARY}
MODELS = {
    "vanilla": from_scratch.vanilla_tiny,
    "dense A": from_scratch.dense_a_tiny,
    "dense B": from_scratch.dense_b_tiny,
    "routed A": from_scratch.routed_a_tiny,
    "routed B": from_scratch.routed_b_tiny,
    "tensor memory": partial(tensor_memory.tiny, **SMALL),
    "decaying tensor memory": partial(tensor_memory.tiny_decaying, **SMALL),
    "softmax": partial(tensor_memory.softmax_tiny, **SMALL),
    "hybrid": partial(tensor_memory.hybrid, **SMALL),
    "mixture of chapters": partial(
        mixture_of_chapters.reading, num_chapters=66, strategy=RollingRouting(window=8)
    ),
    "mixture of chapters by sequence": partial(
        mixture_of_chapters.reading, num_chapters=66, strategy=SequenceRouting()
    ),
    **associative_recall.models(vocab_size=VOCABULARY, dim=32),
}


def plain(ids, step):
    return {"labels": ids}


def padded(ids, step):
    mask = torch.ones_like(ids)
    mask[0, : step + 2], mask[1, LENGTH - step :] = 0, 0
    return {"attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def packed(ids, step):
    first = torch.arange(5 + step)
    row = torch.cat([first, torch.arange(LENGTH - len(first))])
    return {"labels": ids, "position_ids": torch.stack([row, torch.arange(LENGTH)])}


def steps(model, called, kind):
    """Give losses and the last gradients of a few steps."""
    torch.manual_seed(1)
    losses = []
    for step in range(STEPS):
        model.zero_grad()
        ids = torch.randint(VOCABULARY, (2, LENGTH))
        loss = called(input_ids=ids, **kind(ids, step)).loss
        loss.backward()
        losses.append(loss.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [torch.stack(losses), *gradients]


# What looks at documents and padding by itself is asked about them.
CASES = [(name, plain) for name in MODELS]
CASES += [(name, kind) for name in ("routed A", "hybrid") for kind in (padded, packed)]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_graph_serves_every_step(name, kind):
    """A break is an error, and another compilation is counted."""
    torch._dynamo.reset()
    model, counter = MODELS[name]().train(), CompileCounter()
    steps(model, torch.compile(model, backend=counter, fullgraph=True), kind)
    assert counter.frame_count == 1


def test_a_routed_model_learns_the_same_of_packed_rows_compiled():
    """Their number of segments is one that no trace knows."""
    torch._dynamo.reset()
    model = MODELS["routed A"]().train()
    for parameter in model.parameters():
        if not parameter.any():  # what a memory adds would be nothing
            torch.nn.init.normal_(parameter, std=0.1)
    wanted = [each.clone() for each in steps(model, model, packed)]
    given = steps(model, torch.compile(model, backend="aot_eager", fullgraph=True), packed)
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
